"""Rules for secrets of known shape: keys and tokens of known issuers, armored keys. (C4)"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable

from iccm_assets.capture.redaction.rules import RedactionRule, at_word_start


def _rule(
    kind: str,
    pattern: str,
    *hints: str,
    holds: Callable[[re.Match[str]], bool] = RedactionRule.holds,
    gate: str | None = None,
) -> RedactionRule:
    return RedactionRule(kind, re.compile(pattern), hints, holds, gate=re.compile(gate) if gate else None)


def has_high_entropy(text: str) -> bool:
    """Whether a word changes between lower case, upper case and digits as often as random text.

    Random base62 changes at 0.62 of its steps, CamelCase with numbers at 0.3.
    """
    classes = [
        "d" if character.isdigit() else "u" if character.isupper() else "l"
        for character in text
        if character.isalnum()
    ]
    if len(set(text)) < 12 or min(map(classes.count, "dul")) < 2:
        return False
    changes = sum(a != b for a, b in itertools.pairwise(classes))
    return changes >= 0.42 * (len(classes) - 1)


def is_keyboard_mash(text: str) -> bool:
    """Whether letters change their case as often as random text, unlike joined words.

    Names in camel case have no two capitals in a row, or a long run of them.
    """
    # First what most texts fail: the letters of a text are looked at one by one.
    runs = re.findall(r"[A-Z]{2,}", text) if text.isascii() else []
    if not runs or max(map(len, runs)) > 5:
        return False
    letters = [character for character in text if character.isalpha()]
    if len(letters) < 12 or len(set(letters)) < 7:
        return False
    changes = sum(a.isupper() != b.isupper() for a, b in itertools.pairwise(letters))
    return changes >= 0.34 * (len(letters) - 1)


def _has_variety(match: re.Match[str]) -> bool:
    """Whether a match has digits, letters and variety: no CSS class name, no repeated letter."""
    text = match[0]
    return any(map(str.isdigit, text)) and any(map(str.isalpha, text)) and len(set(text)) > 8


def _starts_word(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 2) : match.start()]
    return not before[-1:].isalnum() or before in {"\\n", "\\r", "\\t"}


def _is_token(match: re.Match[str]) -> bool:
    hex_tail = re.search(r"[0-9a-z]{24,}", match[0]) is not None
    return _starts_word(match) and _has_variety(match) and (hex_tail or has_high_entropy(match[0]))


# An armored key: up to its end line, or to its last line of base64 where it was truncated. Brackets end it:
# program code that searches for such lines is not a key. Nothing backtracks, so that hostile text takes
# linear time: by atomic groups, since possessive repeats of groups lose matches before Python 3.11.5.
_ARMORED_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?>(?:(?!-----)[^(){}\[\]])*)-----END [A-Z0-9 ]{0,40}KEY(?: BLOCK)?-----"
    r"|(?>(?:[^\w(){}\[\]]{0,12}(?:[rn]?[A-Za-z0-9+/=]{16,}+))+))"
)

TOKEN_RULES = (
    RedactionRule("PRIVATE_KEY", _ARMORED_KEY, ("-----BEGIN ",)),
    _rule("PRIVATE_KEY", r"Private-Lines: (?P<x>\d+\s+(?:[A-Za-z0-9+/=]{16,}\s*)+)", "Private-Lines: "),
    _rule("PRIVATE_KEY", r"AGE-SECRET-KEY-1[0-9A-Z]{50,}", "AGE-SECRET-KEY-1"),
    _rule(
        "WEBHOOK",
        r"https://(?:hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/"
        r"|(?:\w{1,10}\.)?discord(?:app)?\.com/api/(?:v\d+/)?webhooks/|[\w.-]{1,60}webhook\.office\.com/webhookb2/"
        r"|hooks\.zapier\.com/hooks/catch/)[\w/@%.-]{10,300}",
        "hooks.",
        "webhook",
    ),
    _rule("AWS_ACCESS_KEY", r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AIDA|AROA)[0-9A-Z]{16}(?![0-9A-Z])"),
    _rule("GITHUB_TOKEN", r"gh[pousr]_[A-Za-z0-9]{20,255}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    _rule("GITHUB_TOKEN", r"github_pat_[A-Za-z0-9_]{20,255}"),
    _rule("GITLAB_TOKEN", r"gl(?:pat|oas|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct)-[\w.=-]{16,1024}"),
    _rule("GITLAB_TOKEN", r"GR1348941[\w-]{16,64}"),
    _rule("SLACK_TOKEN", r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}"),
    _rule("SLACK_TOKEN", r"xapp-\d-[A-Za-z0-9-]{10,}"),
    _rule("DISCORD_TOKEN", r"[MNO](?<![\w-].)[\w-]{23,27}\.[\w-]{6}\.[\w-]{27,45}"),
    _rule("DISCORD_TOKEN", r"mfa\.[\w-]{60,}"),
    _rule("TELEGRAM_TOKEN", r"\d(?<!\d\d)\d{7,9}:A[A-Za-z0-9_-]{34}(?![\w-])", ":A"),
    _rule("STRIPE_KEY", r"[srp]k_(?:live|test)_[A-Za-z0-9]{10,}", "k_live_", "k_test_"),
    _rule("STRIPE_KEY", r"whsec_[A-Za-z0-9+/=]{20,}"),
    _rule("GOOGLE_KEY", r"(?:AIza[0-9A-Za-z_-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,})"),
    _rule("GOOGLE_KEY", r"1//0(?<![\w/]1//0)[\w-]{30,}"),
    _rule("AZURE_KEY", r"(?:AccountKey|SharedAccessKey)=(?P<x>[A-Za-z0-9+/]{30,}={0,2})"),
    _rule("AZURE_KEY", r"sig=(?<=[?&]sig=)(?P<x>[A-Za-z0-9%+/]{30,}={0,2})"),
    _rule("AZURE_KEY", r"(?<![\w~.-])[\w~.-]{3}\dQ~[\w~.-]{31,34}", "Q~"),
    # 64 bytes; the digests of package locks are as long but have a prefix.
    _rule("AZURE_KEY", r"(?<![A-Za-z0-9+/=-])[A-Za-z0-9+/]{86}==(?!=)", gate=r"==(?<=[A-Za-z0-9+/]{8}==)"),
    _rule("ANTHROPIC_KEY", r"sk-ant-[\w-]{16,}"),
    _rule("OPENAI_KEY", at_word_start("sk-") + r"[\w-]{20,}", holds=_has_variety),
    _rule("HUGGING_FACE_TOKEN", r"(?:hf_|api_org_)[A-Za-z0-9]{28,}"),
    _rule("NPM_TOKEN", r"npm_[A-Za-z0-9]{30,}"),
    _rule("NPM_TOKEN", r":_(?:authToken|auth|password)=(?P<x>[\w./+=-]{8,})"),
    _rule("PYPI_TOKEN", r"pypi-[A-Za-z0-9_-]{32,}", holds=_has_variety),
    _rule("SENDGRID_KEY", at_word_start("SG") + r"\.[\w-]{16,32}\.[\w-]{30,64}"),
    _rule("BREVO_KEY", r"xkeysib-[a-f0-9]{32,}[\w-]*"),
    _rule(
        "TWILIO_KEY",
        r"(?:AC[a-f0-9]{32}|<TWILIO_KEY>|[sS][iI][dD])\\?[\"']?,\s{0,20}\\?[\"'](?P<x>[a-f0-9]{32})\\?[\"']",
        "AC",
        "<TWILIO_KEY>",
        "wilio",
    ),
    _rule("TWILIO_KEY", at_word_start("AC") + r"[a-f0-9]{32}(?![A-Za-z0-9])"),
    _rule("TWILIO_KEY", at_word_start("SK") + r"[a-f0-9]{32}(?![A-Za-z0-9])"),
    _rule("MAILGUN_KEY", at_word_start("key-") + r"[a-f0-9]{32}"),
    _rule("MAILGUN_KEY", r"pubkey-[a-f0-9]{32}"),
    _rule(
        "MAILGUN_KEY",
        r"(?<![\w-])[a-f0-9]{32}-[a-f0-9]{8}-[a-f0-9]{8}(?![\w-])",
        gate=r"-(?<=[a-f0-9]{9}-)[a-f0-9]{8}-[a-f0-9]{8}(?![\w-])",
    ),
    _rule("MAILCHIMP_KEY", r"(?<![\w-])[a-f0-9]{32}-us\d\d?(?!\w)", gate=r"-us(?<=[a-f0-9]{9}-us)\d"),
    _rule("DIGITALOCEAN_TOKEN", r"do[oprt]_v1_[a-f0-9]{40,}", "_v1_"),
    _rule("HEROKU_KEY", r"HRKU-[\w-]{30,}"),
    _rule(
        "HEROKU_KEY",
        r"(?:h|H)(?:eroku|EROKU)[^\n]{0,60}?(?P<x>(?<![\w-])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})(?![\w-])",
        "eroku",
        "EROKU",
    ),
    _rule("DATABRICKS_TOKEN", r"dapi[a-f0-9]{32}(?:-\d)?"),
    _rule("ARTIFACTORY_KEY", at_word_start("AKC") + r"[a-zA-Z0-9]{30,}", holds=_has_variety),
    _rule("ARTIFACTORY_KEY", at_word_start("AP") + r"[\dA-F][a-zA-Z0-9]{25,}", holds=_has_variety),
    _rule("ARTIFACTORY_KEY", r"cmVmdGtu[A-Za-z0-9]{40,}"),
    _rule("SQUARE_TOKEN", r"sq0[a-z]{3}-[\w-]{20,}"),
    _rule("SQUARE_TOKEN", at_word_start("EAAA") + r"[\w-]{40,}"),
    _rule("SHOPIFY_TOKEN", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{24,}"),
    _rule("FACEBOOK_TOKEN", at_word_start("EAA") + r"[A-Za-z0-9]{60,}"),
    _rule("TOKEN", r"SSWS (?P<x>[\w-]{30,})", "SSWS "),
    # From the first "eyJ" of a run of letters: tried at each of them, hostile text takes quadratic time.
    _rule(
        "JWT",
        r"(?<![\w-])(?:(?!ey[JK])[\w-])*+(?P<x>ey[JK][\w-]{5,}+\.[\w-]{5,}+(?:\.[\w-]*+){1,3}+)",
        "eyJ",
        "eyK",
        gate=r"ey[JK][\w-]{5}",
    ),
    _rule("TOKEN", r"v[1-4]\.(?:local|public)\.[\w-]{30,}", ".local.", ".public."),
    _rule("VAULT_TOKEN", at_word_start("hv") + r"[sbr]\.[\w-]{20,}"),
    _rule("TERRAFORM_TOKEN", r"(?<![\w-])[A-Za-z0-9]{14}\.atlasv1\.[\w-]{50,}", ".atlasv1."),
    # Issuers whose tokens have a unique prefix, and issuers whose prefix is ambiguous.
    _rule(
        "TOKEN",
        r"(?:lin_api_|figd_|figu_|PMAK-|NRAK-|glsa_|dckr_pat_|dckr_oat_|sntrys_|sntryu_|pscale_tkn_|pscale_pw_"
        r"|sb_secret_|rubygems_|ATATT3|ATCTT3|sk-or-v1-|pplx-|lsv2_pt_|lsv2_sk_|shippo_live_|shippo_test_|rzp_live_"
        r"|rzp_test_|tskey-|CCIPAT_|access-sandbox-|access-development-|access-production-|tvly-"
        r"|access_token\$production\$)[\w.=%+/$-]{14,1000}",
        holds=_starts_word,
    ),
    _rule(
        "TOKEN",
        r"(?:secret_|ntn_|NRII-|glc_|pul-|fo1_|fm2_|sbp_|nfp_|cio|oy2|sl\.|ATBB|ATTA|gsk_|xai-|r8_|sk_|EZAK|EZTK|tfp_"
        r"|ops_|dp\.|bkua_|sqa_|sqp_|squ_|phc_|phx_|pat-|pat|sgp_|vcp_|vck_|AAAAAAAAAAAAAAAAAAAAA)[\w.=%+/$-]{20,1000}",
        holds=_is_token,
    ),
)


def _is_readable_base64(text: str) -> bool:
    """Whether this encodes a sentence; a secret in base64 has no spaces between its words."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode("ascii")
    except ValueError:
        return False
    letters = sum(character.isalpha() or character == " " for character in decoded)
    return " " in decoded and decoded.isprintable() and letters >= 0.8 * len(decoded)


# 24 to 100 characters of high entropy, from any issuer. Hexadecimal digests have no upper case, images and
# other data in base64 are longer, integrity digests have a prefix, and so have public SSH keys.
HIGH_ENTROPY_RULE = RedactionRule(
    "TOKEN",
    re.compile(
        r"(?:(?<![\w+/=.-])|(?<=\\[nrt]))(?<!base64,)"
        r"(?!(?:toolu|msg|req|call|resp|chatcmpl|run|sha\d+)[_-]|AAAA(?:[BC]3NzaC1|E2VjZHN|[GI]nNrL))"
        r"[A-Za-z0-9][A-Za-z0-9+/_-]{22,98}[A-Za-z0-9]={0,2}(?![\w+/=-])"
    ),
    holds=lambda match: has_high_entropy(match[0]) and not _is_readable_base64(match[0]),
)
