"""Addresses that are secrets: whoever has the URL of an incoming webhook can post to it. (C4)"""

from __future__ import annotations

import re

from iccm_assets.capture.redaction.rules import RedactionRule
from iccm_assets.capture.redaction.token_secrets import has_high_entropy, is_filler, is_keyboard_mash
from iccm_assets.capture.redaction.vendor_tokens import UUID, TokenForm

# fmt: off
WEBHOOK_FORMS = (
    TokenForm("WEBHOOK", r"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/[\w/%.-]{10,300}",
              "hooks.",
              "https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks"),
    TokenForm("WEBHOOK", r"(?:\w{1,9}\.)?discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d+/[\w/-]{10,300}",
              "webhooks",
              "https://discord.com/developers/docs/resources/webhook"),
    TokenForm("WEBHOOK",
              r"(?:[\w-]{1,60}\.webhook\.office\.com/webhookb2|outlook\.office(?:365)?\.com/webhook)/[\w@/-]{30,300}",
              "webhook",
              "https://learn.microsoft.com/en-us/microsoftteams/platform/webhooks-and-connectors/"
              "how-to/add-incoming-webhook"),
    TokenForm("WEBHOOK", r"chat\.googleapis\.com/v1/spaces/[\w-]{1,60}/messages\?[\w=&%.-]{30,400}",
              "chat.googleapis.com",
              "https://developers.google.com/workspace/chat/quickstart/webhooks"),
    TokenForm("WEBHOOK", r"hooks\.zapier\.com/hooks/(?:catch|standard)/[\w/-]{8,300}", "hooks.zapier",
              "https://help.zapier.com/hc/en-us/articles/8496288690317-Trigger-Zaps-from-webhooks"),
    TokenForm("WEBHOOK", r"hook\.(?:\w{2,6}\.)?(?:make|integromat)\.com/[a-z0-9]{20,60}", "hook.",
              "https://help.make.com/webhooks"),
    TokenForm("WEBHOOK", r"maker\.ifttt\.com/trigger/[\w-]{1,80}/(?:json/)?with/key/[\w-]{16,80}",
              "maker.ifttt.com",
              "https://help.ifttt.com/hc/en-us/articles/115010230347-Webhooks-service-FAQ"),
    TokenForm("WEBHOOK", r"e[no][a-z0-9]{12,14}\.m\.pipedream\.net(?:/[\w/-]{0,80})?", ".m.pipedream.net",
              "https://pipedream.com/docs/workflows/building-workflows/triggers"),
    TokenForm("WEBHOOK", r"(?:webexapis|api\.ciscospark)\.com/v1/webhooks/incoming/[\w-]{40,120}",
              "webhooks",
              "https://apphub.webex.com/applications/incoming-webhooks-cisco-systems-38054-23307-75252"),
    TokenForm("WEBHOOK", rf"open\.(?:feishu\.cn|larksuite\.com)/open-apis/bot/v2/hook/{UUID}", "hook",
              "https://open.larksuite.com/document/client-docs/bot-v3/add-custom-bot"),
    TokenForm("WEBHOOK", r"oapi\.dingtalk\.com/robot/send\?access_token=[a-f0-9]{40,80}", "oapi.dingtalk.com",
              "https://open.dingtalk.com/document/orgapp/custom-robot-access"),
    TokenForm("WEBHOOK", rf"qyapi\.weixin\.qq\.com/cgi-bin/webhook/send\?key={UUID}", "webhook",
              "https://developer.work.weixin.qq.com/document/path/91770"),
    TokenForm("WEBHOOK",
              r"[\w-]{1,40}\.collection\.(?:[a-z0-9]{2,8}\.)?sumologic\.com/receiver/v1/http/[\w=-]{30,300}",
              "sumologic.com",
              "https://help.sumologic.com/docs/send-data/hosted-collectors/http-source/"),
    TokenForm("WEBHOOK", r"events\.(?:eu\.)?pagerduty\.com/integration/[a-f0-9]{32}/enqueue", "pagerduty.com",
              "https://developer.pagerduty.com/docs/events-api-v2-overview"),
)
# fmt: on

_SEGMENTS = re.compile(r"[/?=&#\\]")
_RANDOM_SEGMENT = re.compile(rf"(?:{UUID}|[0-9a-f]{{16,}}|[\w-]{{16,}})(?:@{UUID})?")


def _is_secret_address(match: re.Match[str]) -> bool:
    """Whether a part of a webhook's path looks random."""
    if is_filler(match[0]):
        return False
    parts = [part for part in _SEGMENTS.split(match["path"]) if _RANDOM_SEGMENT.fullmatch(part)]
    return any(
        has_high_entropy(part, 0.3)
        or is_keyboard_mash(part)
        or (sum(map(str.isdigit, part)) >= 3 and any(map(str.isalpha, part)))
        for part in parts
    )


def _allow_escapes(pattern: str) -> str:
    """Return the pattern of an address that also matches it in JSON with ``\\/`` for each slash."""
    classes = re.sub(r"\[(?=[^\]]*/)", r"[\\\\", pattern)
    return re.sub(r"/(?![^\[]*\])", r"\\\\?/", classes)


WEBHOOK_RULES = (
    *(
        RedactionRule(
            form.kind,
            re.compile(_allow_escapes(f"https?://{form.pattern}")),
            tuple(form.anchors.split()),
            lambda match: not is_filler(match[0]),
        )
        for form in WEBHOOK_FORMS
    ),
    # Of any other service: "hook" in the address, and something random behind it.
    RedactionRule(
        "WEBHOOK",
        re.compile(
            _allow_escapes(
                r"https?://(?>(?:(?![Hh]ook)[\w.:/@-]){0,120})[Hh]ook[\w.-]{0,40}+"
                r"(?P<path>[/?][\w./?=&%@#-]{16,300}+)"
            )
        ),
        ("hook", "Hook"),
        _is_secret_address,
    ),
)
