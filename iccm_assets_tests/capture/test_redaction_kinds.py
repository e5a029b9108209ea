"""One text for each kind of secret, of personal data and of look-alikes; programs stay programs. (C4)

A text is drawn: ``{w12}`` becomes 12 letters and digits that must be gone, ``[x32]`` 32 hexadecimal digits
that may stay (d: digits, l: lower case and digits, b: base32, u: a UUID). So no scanner mistakes this
file for a leak.
"""

from __future__ import annotations

import ast
import json
import random
import re
import uuid

import pytest

from iccm_assets.capture.redaction.redact import ALL_RULES, redact
from iccm_assets.capture.redaction.vendor_tokens import AMBIGUOUS_TOKENS, DISTINCT_TOKENS
from iccm_assets.capture.redaction.webhook_urls import WEBHOOK_FORMS

ALPHABETS = {
    "w": "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789",
    "l": "abcdefghijkmnopqrstuvwxyz23456789",
    "x": "0123456789abcdef",
    "d": "123456789",
    "b": "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
}


def draw(template: str, seed: int = 7) -> tuple[str, list[str]]:
    """Return the text of a template, and the values that redaction must remove."""
    rng, needles = random.Random(f"{seed} {template}"), []

    def value(match: re.Match[str]) -> str:
        kind, size = match[2], int(match[3] or 0)
        text = str(uuid.UUID(int=rng.getrandbits(128))) if kind == "u" else ""
        text = text or "".join(rng.choice(ALPHABETS[kind]) for _ in range(size))
        if match[1] == "{":
            needles.append(text)
        return text

    return re.sub(r"([{\[])([wlxdbu])(\d*)[}\]]", value, template), needles


SECRETS = [
    # Files and their formats.
    "machine db.internal\n  login bob\n  password {l9}7",
    "machine a.io login bob password {w9}7\nmachine b.io login eve password {w9}7",
    "default\n\tlogin anonymous\n\taccount x\n\tpassword {w11}",
    "db.internal:5432:app:bob:{w12}",
    "kind: Secret\nmetadata:\n  name: db\ndata:\n  user: {w12}\n  config.ini: {w40}\n",
    "network={\n  ssid=\"x\"\n  psk=\"river{d4}\"\n}",
    "root:$6$abcdefgh${w86}:19000:0:99999:7:::",
    "hash = '$2b$12${w53}'",
    "variable \"token\" {\n  type    = string\n  default = \"{l40}\"\n}",
    "TWILIO_AUTH_TOKEN: >-\n  {x32}\nother: 1",
    "      API_TOKEN: ${API_TOKEN:-{l28}}",
    "ENV DB_PASSWORD={l12}9",
    # Programs and their arguments.
    "password: Annotated[str, Field(min_length=8)] = '{w12}9'",
    "api_key: str = Field(default='{x32}', description='x')",
    "token: SecretStr = SecretStr('{l28}')",
    "const DB_PASSWD: &str = \"{l12}4\";",
    "public string Password { get; set; } = \"{w12}5\";",
    "p.add_argument('--cognitive-key', default='{x32}', help='x')",
    "p.add_argument(\n    \"--secret\",\n    type=str,\n    default=\"{l32}\",\n)",
    "password = getpass.getpass() or '{w11}9'",
    "const k = process.env.API_TOKEN || '{l28}';",
    "@pytest.mark.parametrize('api_key', ['{x32}'])",
    "subprocess.run(['mysql', '-u', 'root', '-p{w11}9'])",
    "env = ['API_TOKEN={w40}', 'A=1']",
    "client.connect('h', 22, 'bob', '{w11}9')",
    "User.objects.create_user('bob', 'x@y.io', '{w11}9')",
    "user.set_password('forest_stone{d3}')",
    # Command lines.
    "htpasswd -cb f bob {w12}",
    "net use Z: \\\\srv\\s /user:bob {w11}9",
    "echo 'bob:{w12}' | chpasswd",
    "sqlplus scott/{w12}@//db:1521/XE",
    "openssl enc -aes-256-cbc -in a -pass pass:{w12}",
    "gh secret set API_TOKEN --body '{x32}'",
    "docker run -e ADMIN_PASSWORD={w8}1! -p 80:80 img",
    "curl -b 'PHPSESSID={l26}' http://x",
    "poetry config http-basic.acme bob {w9}!7",
    "sqlcmd -S h,1433 -U sa -P \"{w9}!7\" -Q \"SELECT 1\"",
    "mosquitto_pub -h h -u bob -P {w12}7 -t a -m b",
    "http -a bob:{w12} POST https://h/jobs",
    "smbclient //nas/share -U 'bob%{w12}' -c ls",
    "keytool -genkeypair -keystore a.jks -storepass {w12}7",
    "$ wandb login {x40}\nok",
    "rollbar.init('{x32}', environment='production')",
    # Servers, network devices and drivers.
    "maxmemory 2gb\nrequirepass {w12}\nappendonly yes",
    "snmp-server community {w9} RO\nusername bob privilege 15 secret 0 {w9}",
    "sql.Open(\"mysql\", \"bob:{w12}@tcp(db:3306)/x?parseTime=true\")",
    "proxy = bob:{w9}!7@proxy.acme.io:3128",
    "Driver={ODBC Driver 18};Uid=bob;Pwd={{w9}!7};Encrypt=yes;",
    "jdbc:oracle:thin:bob/{w12}@//ora:1521/X",
    "CREATE LOGIN bob WITH PASSWORD = N'{w9}!7', CHECK_POLICY = ON;",
    "<tls-auth>\n-----BEGIN OpenVPN Static key V1-----\n{x32}\n{x32}\n-----END OpenVPN Static key V1-----",
    "-requirepass = {w12}",
    "CARGO_REGISTRY_TOKEN=cio{w32}",
    "DriverManager.getConnection(\"jdbc:oracle:thin:@ora:1521:X\", \"scott\", \"mango-Umbra-{d2}\")",
    "define('AUTH_KEY',         'F2RK05(&{w32}:X|k;# ');",
    "define(\"AUTH_SALT\", \"F2RK05(&{w32}:X'k;# \");",
    "echo '{w20}' | docker login ghcr.io -u bot --password-stdin",
    "wandb.login(key=\"{x40}\")",
    "new NetworkCredential(\"svc-build\", \"Lantern{d4}*\");",
    "let password = String::from(\"Copper{d4}*\");",
    "DBI->connect('dbi:Pg:dbname=crm', 'crm', 'lpHlXlQH{w6}', { RaiseError => 1 });",
    "wget --user=ci --password=dcyGGkM{l5} https://h/a.zip",
    "[acme]\nusername = ci\npassword = pixel-Harbor-copper{d2}",
    "kind: Secret\nmetadata:\n  name: app\nstringData:\n  connection: ok\n  admin: {w15}2",
    '{"type":"random_password","instances":[{"attributes":{"length":20,"result":"{w20}"}}]}',
    "<machineKey validationKey=\"{x64}{x64}\" decryptionKey=\"{x48}\" validation=\"SHA1\" />",
    "our credentials: anna / {w10}^a7  (VPN)",
    # Tables.
    "| system | user | Password |\n|---|---|---|\n| grafana | admin | {w9}? |\n| ci | bob | {w9}!7 |",
    "user,password,role\nbob,{w9}!7,admin\neve,{w9}!8,dev\n",
    # Sentences.
    "ok, user jenkins, pw: Orbit_{l6}44!, then run make",
    "log in with user admin and password kR{d3}-tulip-CZP, then click",
    "Login: vpnuser / Password: Juniper_{l6}72",
    "wifi password for the lab: \"{w20}\"",
    "test with user bob / password Saturn{d4}?, thanks!",
    "Zugangsdaten: Benutzer kasse, Kennwort: river-ember-velvet{d2}",
    "A senha do banco é {w16} e o usuário é root.",
    "Hasło do bazy to {w14}, login admin.",
    "Пароль от сервера: {w12}4",
    "la contraseña de la base de datos es: Ceniza{d3}#05L",
    # URLs and headers.
    "curl -H 'Authorization: Splunk {u}' https://h",
    "OTEL_EXPORTER_OTLP_HEADERS=\"x-honeycomb-team={w22}\"",
    "https://endpoint4.collection.eu.sumologic.com/receiver/v1/http/{w84}==",
    "https://x.io/cb#access_token={w40}&token_type=bearer",
    "https://b.s3.amazonaws.com/k?X-Amz-Expires=300&X-Amz-Signature={x64}",
    "https://storage.googleapis.com/b/o?X-Goog-Expires=600&X-Goog-Signature={x128}",
    "otpauth://totp/x:bob?secret={b32}&issuer=x",
    "Authorization: Digest username=\"bob\", realm=\"r\", response=\"{x32}\"",
    # Webhooks.
    "https://hooks.slack.com/services/T[b8]/B[b10]/{w24}",
    "https://ptb.discord.com/api/v10/webhooks/[d18]/{w68}",
    "https://acme.webhook.office.com/webhookb2/{u}@[u]/IncomingWebhook/{x32}/[u]",
    "https://outlook.office.com/webhook/{u}@[u]/IncomingWebhook/{x32}/[u]",
    "https://prod-7.westus.logic.azure.com:443/workflows/[x32]/triggers/manual/paths/invoke?sv=1.0&sig={w43}",
    "https://chat.googleapis.com/v1/spaces/[w11]/messages?key=AIza{w35}&token={w43}%3D",
    "https://mattermost.acme.com/hooks/{l26}",
    "https://chat.acme.com/hooks/[w24]/{w64}",
    "https://hook.eu1.make.com/{l32}",
    "https://maker.ifttt.com/trigger/door/with/key/{w22}",
    "https://eo{l13}.m.pipedream.net",
    "https://webexapis.com/v1/webhooks/incoming/{w76}",
    "https://open.feishu.cn/open-apis/bot/v2/hook/{u}",
    "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key={u}",
    "https://events.pagerduty.com/integration/{x32}/enqueue",
    "WEBHOOK_URL=https://ci.acme.io/webhooks/incoming/{x32}",
    # Tokens without a name.
    "x AKIA{b16} y", "x gh" + "p_{w36} y", "x glrt-{w20} y", "x xo" + "xb-[d12]-[d13]-{w24} y",
    "x sk_live" + "_{w24} y", "x SG" + ".{w22}.{w43} y", "x [x8]{x24}-us7 y", "x xsmtpsib-{x64}-{w16} y",
    "x npm" + "_{w36} y", "x hf" + "_{w34} y", "x sk-" + "proj-{w74} y", "x sk-" + "ant-api03-{w93}AA y",
    "x nvapi-{w64} y", "x pcsk_{w5}_{w60} y", "x dop_v1_{x64} y", "x GOCSPX-{w28} y", "x [w3]7Q~{w34} y",
    "x {w42}AzSe[w6] y", "x [w14].atlasv1.{w67} y", "x shpat" + "_{x32} y", "x [d9]:AA{w33} y",
    "x NRAK-{b27} y", "x {x36}FFFFNRAL y", "x glsa_{w32}_{x8} y", "x lin_api_{w40} y", "x ntn_[d11]{w35} y",
    "x pat[w14].{x64} y", "x pat-na1-{u} y", "x 2/[d16]/[d16]:{x32} y", "x CFPAT-{w43} y", "x rnd_{w28} y",
    "x napi_{l60} y", "x re_{w8}_{w24} y", "x cfut_{w40} y", "x LTAI{w20} y", "x fm2_{w80} y",
    "x AGE-SECRET-KEY-1{b58} y", "x vcp_{w56} y", "x bkua_{x40} y", "x sdk-{u} y", "x ddapp_{w34} y",
]  # fmt: skip
PERSONAL = [
    "jane.doe@acme.photography", "JANE_DOE@ACME.IO", "jane@xn--bcher-kva.example", "jane@[192.0.2.7]",
    "jane (at) acme (dot) org", "jane [at] acme.de", "jane.doe at acme dot com", "jane&#64;acme.io",
    "(11) 97905-2690", "(040) 482 91-63", "(0118) 887 2767", "00491546582822", "0031 89 2343652",
    "090-5774-5125", "+49 (0)89 / 4523211", "8 (946) 773-34-87",
    "+55 (11) 97905-2690", "6263718795135656706", "fi2112345600000785",
]  # fmt: skip
LOOK_ALIKES = [
    "-----BEGIN CERTIFICATE-----\n[w64]\n[w40]\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\n[w64]\n[w40]\n-----END PUBLIC KEY-----",
    "PNG = b'''iVBORw0KGgo[w64]\n[w76]\n[w40]'''",
    "[w76]\n[w76]\n[w30]",
    "github.com/a/b v1.2.3 h1:[w43]=",
    "cus_[w14] pi_[w24]",
    "out = x@self.amber.weight + f(b@model.layers)\nscores = q@k.mT",
    "6341 2854 4659 2901 4745 317",
    "assert encode('falconstonepurplehammer') == 'ZmFsY29uc3RvbmVwdXJwbGVoYW1tZXI='",
    "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx and sk-xxxxxxxxxxxxxxxxxxxxxxxx",
    "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
    "https://api.acme.io/webhooks/orders-created?limit=50",
    "https://github.com/a/hooks/blob/[x8]/src/use-memo.py",
    "class='mt-4 sk-spinner-grow-circle-8'",
    "PASSWORD=your-passwd-here\nAPI_KEY=<your-api-key>\ntoken: changeme",
    "password: !vault\npassword = var.password\nkey: !Ref ApiKey2",
    "postgres://user:password@localhost/db",
    "secret_key_of_the_table_2 and patient-record-number-2024 and re_compile_all_patterns1",
    "s.translate(table_for_everything); dp.table[i][j] = dp.other_table_value1",
    "machine learning is fun; login to continue; the password field",
    "apiVersion: v1\nkind: ConfigMap\ndata:\n  mode: production\n",
    "order 00123456789, issue 0012, at 01-2024",
    "PublicKeyToken=[x16]",
    "password-strength>=0.0.3.post2\ncurl -u USERNAME:PASSWORD https://host/path",
    "login: /home/user1/area2 and login: user/role",
    "DB_PASSWORD=${DB_PASSWORD:?required} and ${TOKEN:+alternative1}",
    "run it with --password=PASSWORD or --password=your-password, --password option",
    "type: random_password_policy\npassword: Text\nresult: word12",
    "type T struct {\n\tPassword: String\n\tUserPassword: Argon2id\n}\nregistry_key = table_key12",
    "PublicKey = [w43]=\nSHA256:[w43] bob@web (ED25519)",
    "password: !vault_ref db/prod\n$password = $_POST['password'] ?? '';",
    "https://hooks.slack.com/services/XXX/YYY/ZZZ and mongodb+srv://<username>:<password>@cluster0.mongodb.net",
    "| password | required |\n|---|---|\n| hashed before it is stored | yes |",
    "key,token,count\nid,word_and_tag,3\n",
    "image: registry.io/app:v1.2@sha256:[x64]\ndocker pull redis:7.2@sha256:[x64]",
    "model.start('[w8]'); app.init('default_profile_of_the_user'); run login now",
    "pwd = {current_dir}; password={password}",
    "password = get_password('db-user-2024') or default_password",
]
PROGRAMS = [
    "def f():\n    card = 4111111111111111\n    return [card, 5500000000000004]\n",
    "def f(): return 219-19-9999\n",
    "def f(a):\n    password = a1b2c3d4e5f6\n    return f(user=a,password=a1b2c3d4e5f6)\n",
    "def f(): return '\\x0ajane@acme.io', '\\u00e9jane@acme.io\\n'\n",
    "print('x://a:hunter2\\\"@h', 'jane@acme.io\\\\')\n",
    "def f(u): return f'https://{u}:hunter2x9@h/{u}'\n",
    "KEY = str(\n    '-----BEGIN RSA PRIVATE"
    + " KEY-----\\n'\n    'MIIEowIBAAKCAQEA7bq8\\n'\n    '-----END RSA PRIVATE"
    + " KEY-----\\n'\n)\n",
    "import re\nR = re.compile(r'password=[\\w\\d]{8,}1x$')\n",
]


@pytest.mark.parametrize("template", SECRETS)
def test_a_secret_of_each_kind_is_gone(template: str) -> None:
    for seed in range(3):
        text, needles = draw(template, seed)
        redacted = redact(text)
        assert [needle for needle in needles if needle in redacted] == [], redacted
        assert redact(redacted) == redacted


@pytest.mark.parametrize("value", PERSONAL)
@pytest.mark.parametrize("surroundings", ["%s", "f('%s')\n", "Meine Daten: %s. Danke", "a,%s,b"])
def test_personal_data_of_each_form_is_gone(value: str, surroundings: str) -> None:
    assert value not in redact(surroundings % value)


@pytest.mark.parametrize("template", LOOK_ALIKES)
def test_what_only_looks_like_a_secret_stays(template: str) -> None:
    text, _ = draw(template)
    assert redact(text) == text


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_one_after_redaction(program: str) -> None:
    ast.parse(redact(program))
    fenced = redact(f"Mail jane@acme.io:\n\n```python\n{program}```\n\nor jane@acme.io.")
    ast.parse(fenced.split("```python\n")[1].split("```")[0])
    assert "jane" not in redact(program) and "jane" not in fenced and "4111111" not in fenced


def test_a_document_in_json_is_one_after_redaction() -> None:
    text = json.dumps({"card": 4111111111111111, "cards": [4111111111111111], "mail": "jane@acme.io"})
    assert json.loads(redact(text)) == {"card": "<CARD>", "cards": ["<CARD>"], "mail": "<EMAIL>"}


def test_each_token_form_has_an_anchor_that_it_needs_and_a_source() -> None:
    for form in (*DISTINCT_TOKENS, *AMBIGUOUS_TOKENS, *WEBHOOK_FORMS):
        assert form.source.startswith("https://") and form.anchors.split()
        assert re.compile(form.pattern).search("x" * 40) is None
    assert len({rule.pattern for rule in ALL_RULES}) == len(ALL_RULES)
