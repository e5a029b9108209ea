"""Fine-tune a seq2seq model as the documentation of ``transformers`` does: the peer of ``training.py``.

python benchmarks/plain_trainer.py job.json
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Train the job of a JSON file."""
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    model = AutoModelForSeq2SeqLM.from_pretrained(job["base"])
    sets = {
        name: [tokenizer(source, text_target=text) for source, text in job[name]]
        for name in ("train", "validation")
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            eval_strategy="epoch",
            eval_on_start=True,
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **job["arguments"],
        ),
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    trainer.train()
    trainer.save_model(job["output"])
    tokenizer.save_pretrained(job["output"])


if __name__ == "__main__":
    main()
