"""The words of requirements in the languages that developers write them in. (C3a)"""

from __future__ import annotations

import re

# "shall", and the keywords of RFC 2119 in capitals: nobody chats like this.
FORMAL = re.compile(
    r"\b(?:[Ss]hall|SHALL|MUST|SHOULD|REQUIRED TO|WILL|MAY|(?:is|are) (?:required|mandatory) (?:to|that)"
    r"|(?:is"
    r"|are) obliged to)\b"
)
MODAL = re.compile(
    r"\b(?:must|should|will|needs? to|ha(?:s|ve) to|ought to|(?:is|are) (?:expected|supposed|to be able) to"
    r"|may not|(?:is|are) not allowed to|(?:is|are) to(?= [a-z]))\b",
    re.IGNORECASE,
)
# What follows a modal verb in a statement: a verb, perhaps after an adverb, or a list.
_PREDICATE = re.compile(
    r"[*_`]*,?\s{1,3}(?:not |never |always |also |only |then |at least |either |both "
    r"|[a-z]+ly )*[*_`\"]{0,3}\w{2,}|[*_`]*:\s*$",
    re.IGNORECASE,
)
_NO_PREDICATE = re.compile(
    r"[*_`\"'”’]*\s{1,3}(?:now|then|here|there|everywhere|instead|and|or|but|by|is|was|are|were|as|too"
    r"|again|be fine|means?|vs|versus|i|we|you)\b|[*_`]*\s*[.,;!?)\"'”’]|[*_`]*\s*$",
    re.IGNORECASE,
)
_VAGUE = re.compile(
    r"[*_`]*\s{1,3}(?:not |also |now |all |just |probably |still |already |hopefully )*(?:now\b|work\b"
    r"|pass\b|fix\b"
    r"|help\b|do\b|suffice\b|look\b|compile\b|run (?:now|again|fine)|match\b|make sense|cover\b|go\b"
    r"|have (?:been|said)"
    r"|take (?:a (?:while|look|moment|minute|second|few|bit|couple)|an hour|about|some|effect|long|place"
    r"|\d)|be (?:gone|wrong|reviewed|formatted|refactored|merged|committed|discussed|fixed|solved|resolved"
    r"|green|live|back|fine"
    r"|ok|okay|enough|good|better|clear\w*|ready|done|right|correct|all|easy|easier|possible|sufficient"
    r"|complete|what|that|it|the (?:case|reason|problem)|because|about)\b)",
    re.IGNORECASE,
)
# In small letters, as the text that they get: ignoring case takes twice as long.
_PERSON = re.compile(
    r"(?:^|[\s(,;:*_\"“])(?:i|we|you|he|she|they|one|let's|let us|someone|somebody|anybody|nobody|people"
    r"|your [a-z]+|my [a-z]+)(?:'ve|'d)?\s+(?:also |just |now |still |then |both |all |probably |really "
    r"|only )*[*_`]*$"
)
_BARE = re.compile(
    r"^(?:and |so |but |then |now |ok,? |okay,? |yes,? |no,? |well,? |i think |i hope |hopefully,? |maybe )*"
    r"(?:it|that|this|these|those|they|everything|all|which|there|here|nothing|what|who|how|where|when)"
    r"(?: all| also| now| then)*$",
    re.IGNORECASE,
)
_TALK = re.compile(
    r"\b(?:answer|change|changes|fix|commit|pull request|pr|branch|ticket|test|tests|suite|ci|build"
    r"|requirement"
    r"|requirements|document|list|file i|next step|step|reason|problem|bug|issue|explanation|rest|wording"
    r"|sentence"
    r"|sentences|lines?|goal|idea|aim|purpose|plan|task|word|text|item|point|refactoring|patch|update|summary"
    r"|example|version above|code (?:above|below|you))"
    r"(?: \d{1,4})?(?: (?:above|below|here))?$",
    re.IGNORECASE,
)
SOFTWARE = re.compile(
    r"\b(?:function|method|class|module|system|component|service|program|application|app|software|api"
    r"|endpoint|library"
    r"|package|script|procedure|routine|algorithm|constructor|property|field|attribute|parameter|argument"
    r"|input|output"
    r"|value|values|result|implementation|object|instance|interface|operation|command|tool|server|client"
    r"|database"
    r"|parser|users?|callers?|exception|error|list|string|number|type|key|order|request|response|data|\w+_\w+"
    r"|[a-z]+[A-Z]\w*|[A-Z][a-z]+[A-Z]\w*)\b|`[^`]+`|\w\(\)|\*\*\w"
)
_MENTION = re.compile(
    r"\b(?:shall|must|should|will|may|can)[`\"'”’]? (?:and|or|nor|not|than|rather than"
    r"|instead of) [*_`\"'“‘]*$"
    r"|\b(?:word|verb|term|keyword|modal|form|phrase|write|wrote|use|uses|used|using|with|replaced|says?"
    r"|said)\s+"
    r"[*_`\"'“‘]*$"
)
# The words of a heading over requirements.
HEADING_WORDS = re.compile(
    r"\b(?:requirements?(?!\.\w)|reqs?(?![-_. ]?\d)|acceptance criteri(?:a|on)|specifications?|spec"
    r"|user stor(?:y|ies)"
    r"|functional"
    r"|non-functional"
    r"|pre-?conditions?|post-?conditions?|invariants|(?:must|should|could)[- ]haves?(?=\W*$)"
    r"|what (?:it|this|the [a-z]+|`\w+`) (?:must|should|has to|needs to|shall) do"
    r"|shall statements?|rules|behaviou?r|constraints|anforderung(?:en)?|akzeptanzkriteri(?:en|um)"
    r"|spezifikation"
    r"|exigences?|critères d['’]acceptation|requisitos?|criterios de aceptación|exigencias|requisiti"
    r"|vereisten"
    r"|eisen|требовани[яе]|wymagania|krav)\b|要件|要求|需求|仕様|規格|规格|요구",
    re.IGNORECASE,
)
_MAX_SENTENCE = 4000  # characters
# Modal verbs of other languages; a person before or after them, or a promise, is no statement.
_FOREIGN = re.compile(
    r"\b(?:mu(?:ss|ß)|müssen|soll|sollen|sollte|sollten|darf|dürfen"
    r"|doit|doivent|devra|devront|devrait|devraient|est tenue? de|il faut que"
    r"|debe|deben|deberá|deberán|debería|deberían|tiene que|tienen que|ha de|han de"
    r"|deve|devem|deverá|deverão|devono|dovrà|dovranno|dovrebbe|precisa"
    r"|moet|moeten|dient|должен|должна|должно|должны|обязана?|musi|muszą|powinien|powinna|powinno)\b"
    r"|(?:なければ(?:ならない|なりません)|ねばならない|ものとする|ものとします|こととする|べき(?:である|です|だ|。|$)"
    r"|必要があ(?:る|ります)|必須|てはならない|てはなりません|ではならない|すること(?:。|$)|返すこと|であること)"
    r"|必须|必須|应当|應當|应该|應該|(?<![响反对适相供])应(?![用对])|(?<![響反對適相供])應(?![用對])|需要|须|須|不得|不可以|不能"
    r"|해야 (?:한다|합니다|함)|[어아여]야 (?:한다|합니다|함)|되어야|필요가 있",
    re.IGNORECASE,
)
_FOREIGN_TALK = re.compile(
    r"\b(?:ich|wir|du|ihr|man|je|tu|nous|vous|yo|nosotros|usted|ik|wij|jij|я|мы|вы)\b"
    r"|\b(?:das|dies|jetzt|nun|cela|ça|ca|esto|eso|ahora|maintenant|dat|dit|nu)\b[^.]{0,30}"
    r"(?:gehen|funktionier\w+|passen|klappen|reichen|stimmen|aller|marcher|fonctionner|suffire|funcionar"
    r"|bastar"
    r"|servir|werken)"
    r"|^(?:まず|最初に|先に)|[你您我]们?(?:先|还|也|就)?(?:应|需|必|不)|应该(?:可以|没问题|没有问题|就行|能行|好了)|してください|くださいませ|はずです|でしょう",
    re.IGNORECASE,
)


# German for "you", told from "they" by its capital only.
_POLITE = re.compile(r"\bSie (?:müssen|sollten|sollen|dürfen)\b|\b(?:müssen|sollten|sollen|dürfen) Sie\b")


def rate_statement(sentence: str, *, is_item: bool) -> int:
    """Return how clearly a sentence says what software has to do: 0 not at all, 2 in formal or foreign words.

    An item of a list needs less proof of its subject.
    """
    return 2 if is_formal(sentence) or is_foreign(sentence) else int(_has_modal(sentence, is_item))


def is_formal(sentence: str) -> bool:
    """Whether a sentence states something with "shall" or a keyword in capitals."""
    for match in FORMAL.finditer(sentence[:_MAX_SENTENCE]):
        subject = sentence[max(0, match.start() - 60) : match.start()].lower()
        is_talk = bool(_PERSON.search(subject) or _MENTION.search(subject))
        is_talk = is_talk or (
            subject.strip() in {"", "that", "this"} and _VAGUE.match(sentence, match.end()) is not None
        )
        if not is_talk and _is_predicate(sentence[match.end() : match.end() + 120]):
            return True
    return False


def is_foreign(sentence: str) -> bool:
    """Whether a sentence of another language than English states what software has to do."""
    text = sentence[:_MAX_SENTENCE]
    if _FOREIGN.search(text) is None:
        return False
    return _FOREIGN_TALK.search(text) is None and _POLITE.search(text) is None


def _has_modal(sentence: str, is_item: bool) -> bool:
    """Whether the first modal verb with a predicate makes a statement about software."""
    for match in MODAL.finditer(sentence[:_MAX_SENTENCE]):
        subject = sentence[max(0, match.start() - 120) : match.start()].strip(" \t-*_>|#")
        rest = sentence[match.end() : match.end() + 120]
        if not _is_predicate(rest):
            continue
        words = f"{subject.lower()} "
        if _PERSON.search(words) or _MENTION.search(words) or _VAGUE.match(rest):
            return False
        if is_item:
            return True
        return bool(subject) and not _TALK.search(subject) and _is_software(subject)
    return False


def _is_software(subject: str) -> bool:
    """Whether the subject may be software: "it" alone is what was talked about, "that" is not."""
    return bool(SOFTWARE.search(subject)) or subject.lower() in {"it", "and it"} or not _BARE.match(subject)


def _is_predicate(rest: str) -> bool:
    return _PREDICATE.match(rest) is not None and _NO_PREDICATE.match(rest) is None
