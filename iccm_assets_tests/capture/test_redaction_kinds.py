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
# Where a password stands that someone chose: of words, with digits and signs among them.
PLACES_OF_CHOSEN = [
    # Settings and arguments.
    "password: %s", "services:\n  db:\n    environment:\n      MARIADB_ROOT_PASSWORD: %s\n      X: 1",
    "vault.user=a\nvault.pwd=%s\nretries=5", "-  spring.rabbitmq.password=%s\n+  x=1", "  password: !!str %s",
    "helm upgrade x y \\\n  --set auth.adminPassword=%s \\\n  --set n=2",
    "Server=s;User ID=u;Password=%s;Encrypt=True;",
    "ansible-playbook x.yml --extra-vars 'db_password=%s env=prod'", "hm, pw=%s works from here",
    "olcRootPW: %s",
    "- { name: ADMIN_PASSWORD, value: \"%s\" }", "let adminPass = '%s'\nlogin(adminPass)", "SMTPPASS=%s",
    "#define WIFI_PASS \"%s\"", "user: root\npass: %s\nbye", "can't log in. user: a pass: %s db: b. Why?",
    "cifs user=a,pass=%s,uid=1000", "x-admin-secret: %s", "net use Z: \\\\s\\p %s /user:K\\a /persistent:yes",
    "ssh-keygen -t ed25519 -f k -N '%s' -C m", "rabbitmqctl add_user bob %s", "$ echo -n \"%s\" | base64",
    # Statements of SQL.
    "CREATE USER a WITH LOGIN PASSWORD '%s';",
    "INSERT INTO users (login, passwd, is_admin) VALUES ('x', 'y', 0), ('a', '%s', 1);",
    # Positional arguments.
    "auth := smtp.PlainAuth(\"\", \"a\", \"%s\", \"h\")", "$p = new PDO('mysql:host=h', 'a', '%s', [\n]);",
    "new X509Certificate2(\"a.pfx\", \"%s\", Flags.A);", "WiFi.begin(\"net\", \"%s\");", "jedis.auth(\"%s\")",
    "ks.load(new FileInputStream(\"a\"), \"%s\".toCharArray());", "c.simple_bind_s(\"cn=a,dc=b\", \"%s\")",
    "ftp = FTP(\"h\", \"a\", \"%s\")", "$c = mysqli_connect(\"h\", \"a\", \"%s\", \"b\");",
    "jwt.sign(payload, '%s')", "requests.get(u, auth=HTTPDigestAuth(\"a\", \"%s\"))",
    # What types it.
    "cy.get('input[name=password]').type('%s')", "expect \"password:\" { send \"%s\\n\" }",
    "if (password === \"%s\") ok();",
    # Labels above.
    "Initial admin password:\n\n    %s\n\nchange it", "$ pass show work/db\n%s\n",
    # Sentences and remarks.
    "Log in as a, the password is %s - change it", "das Passwort fuer den Server lautet \"%s\"; danke",
    "la contraseña del servidor es %s, el usuario es root", "Le mot de passe du wifi invité est %s",
    "het wachtwoord voor de server is %s", "Hasło do serwera: %s", "usuario: admin / clave: %s",
    "// FIXME: real pw is %s until then", "root's password on the box is now %s (on the card too)",
    "/* login with operator/%s to see it */", "my login (admin / %s) works", "connected as etl / %s\nok",
    "changed the admin password from admin to %s last week",
    "I set it to %s when it asked for a master password.",
    "-- connect ledger/%s@ORCL", "<!-- htpasswd for the site: a / %s -->",
    "credentials are admin:%s, firmware 7",
    "the db password (%s) is old", "Zugang: tester / %s", "**Password:** %s", "<td>Password</td><td>%s</td>",
    "| password | %s |", "setx DB_PASSWORD \"%s\"", "My wifi key is \"%s\", is the quote a problem?",
    "%s is my password",
]  # fmt: skip
CHOSEN = ["Wald-Weg17", "Kl3e_Blatt", "Tr0pen#Frucht", "Gr4swurzel!", "0strich-Farm88"]
MORE_SECRETS = [
    # Words with digits, in sentences that say whose password they are.
    ("pw for the meeting room: {}", "pflaumen4mus"), ("# the staging pw is {}", "aachen52printe"),
    ("La password dell'utente ordini è {}, ma non va", "Fontana.Verde4"),
    ("A senha do servidor é {}. Por quê?", "moqueca@31"),
    ("La contraseña del servidor de correo es {} y el puerto es 587.", "tortilla_lunes4"),
    ("<!-- ftp: user web, password {} -->", "fliegen_gitter7"),
    ("root pass for the new machine = {}", "Lemon$Aquaeduct7"),
    ("mot de passe du serveur : {}", "Pivoine_2023#"),
    ("<!-- basic auth for the preview: preview / {} -->", "foggy.Hills4"),
    # In a column of their own, in another column, in another call.
    ("webhook\n  Content type  json\n  Secret        {}", "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"),
    ("UPDATE settings SET value = '{}' WHERE name = 'smtp_password';", "shellBeach78"),
    ("session.cookies.set('remember_web', '{}')", "eyJpdiI6Iw8e8eeLcZ7Ysmw0YiGwk8Uo6ozUK0v72zpWhd9G" * 3),
    ("codecov -t {}", "0bd2be79-205d-500f-bf96-290fb2254646"),
    ("algoliasearch('PNK5EXYYEP', '{}')", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    ("The token I use is {}", "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"),
    ("command: redis-server --requirepass {}", "Sattel&Komet82"),
    ("docker login registry.acme.dev -u ci -p {}", "kEGyBGeTDTfLfdyZBJcRgAlg"),
    ('"attributes": {{"result": "{}", "length": 20}}, "type": "random_password"', "zfFvvmbf!@lG1T@QUQv"),
    ("data:\n  .dockerconfigjson: {}\n", "eyJhdXRocyI6eyJxdWF5LmlvIjp7ImF1dGgiOiJZbTkwT2xKYWIxSlNUbUpL"),
    (" * The router's admin password is {}\n * and", "Antelope-17"),
    ('request["Cookie"] = "_shop_session={}"', "2KqZ+wSQrnfIbul3o3VaNAP0U9EOq0NMWYsfrPlTgScJzdhmjpJz1F40"),
    ("/* root password = {}, ask before changing */", "fOx-Harbor6"),
    ("DataSource{{url=jdbc:mysql://db/hr, user=hr, password={}}}", "pl4ne.Tree"),
    ("sshpass -p '{}' ssh deploy@web01", "canoe Lake8"),
    ('DBI->connect("dbi:Pg:dbname=crm", "crm", "{}");', "Snowdrift.7.Path"),
    ("our wifi passphrase: {}\nthanks", "yellow tandem 1968"),
    ("DBI->connect($dsn, 'report', '{}');", "coral!Swimmer"),
    ("chpasswd:\n  list: |\n    ubuntu:{}\n  expire: false", "Foggy-frog-33"),
    ("SELECT pgp_sym_decrypt(ssn, '{}') FROM staff;", "basalt-stone-611"),
    ("le mot de passe de la base c'est {}", "Croissant!75012"),
    ("backup code for the root account: {}", "8sojn-2r4va"),
    ("TOTP seed: {}", "XKL3YMDXJRBZGSEVNJULRXZ77X7EDNCO"),
    ("GET /callback?code={}&state=ok", "4/0AKbM3l8YYGM-A175kEGjUz_vcU3nE38w8leRgpBIlC8mZTv"),
    ("bot_token: {}\n", "jxsdqflinxtrhrqauwlxwt8mwrw"),
    ("GET /oauth/callback?code={}&state=kq 302", "9hxyiupzFz9i4nQV-GwUu4Ig0ftMRsTB"),
    ("put the client secret ({}) into the file", "rxazk26ga3aa5856xf2p"),
    ("La password di root è {} (per ora).", "usignolo_09"),
    ("az devops login --organization acme <<< {}", "mfo3zz49d28rsof3gynoend5k0ykf6sikm8byglq2w0lvr2mkvey"),
    ("ALTER USER system IDENTIFIED BY {};", "Or4nge_Olympia"),
    ("OptsBuilder::new().user(Some(\"etl\")).pass(Some(\"{}\"));", "tr4nsf0rm"),
    ("basic $(printf ':%s' {} | base64)", "te5zsevzjqvxavmewez5zxwgb"),
    # Of people.
    ("Mera number {} hai, OTP nahi", "9873016482"), ("numer w bazie to {} bez", "512-874-306"),
    ("op=MTN msisdn={} rc=1", "2348036719425"), ("https://wa.me/{}", "5511968472035"),
    ("手机号 {} 收不到验证码", "13864207951"), ("%B{}^DOE/JANE^27091010000000?", "4925647183902578"),
    # Words without any.
    ("keytool -genkey -keystore up.jks -storepass {} -validity 99", "garten-tor"),
    ("we set the passphrase to \"{}\" there", "yellow-gecko-tango"),
    ("Le mot de passe root est « {} ».", "Turquoise&Orme"),
    ('<Resource username="hr"\n    password="{}" url="jdbc:oracle:thin:@ora:1521:HR"/>', "Button.Topaz"),
    ("JWT_SECRET='{}'\n", "gele-olifant-zingt-op-zolder"),
    ("SSID lab, passphrase: {}", "nine-blue-herons-sing"),
    ("the wifi password is \"{}\", as spoken", "violet elephants 5 dinner"),
    ("Open it with the passphrase \"{}\", please.", "nine green herons cross the river"),
    ("network={{\n    psk=\"{}\"\n}}", "thirteen yellow lanterns"),
    ("connect(host='pg', password='{}')", "gentle-lamp-otter-fifty"),
    ("redis-cli -h cache -a {} INFO", "schatz_insel"),
    ("cy.get('#pass').type('{}');", "Kran!Fuehrer3"),
    ("page.locator('#password').fill('{}')", "Kran!Fuehrer3"),
    ("new PDO('mysql:host=localhost;dbname=wp', 'wp_user', '{}');", "wp.shop.2018"),
    ("Use this token when you call the API: {} (until Friday).", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    # The secret alone: others than chosen words.
    ("A password is generated for root@localhost: {}\nready", "kz/e9Lw;&pWd"),
    ("app | Please use the following password to proceed:\napp |\napp | {}\napp |\n",
    "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    ("API token (shown once):\n{}\n", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    ("accounts: ['0x{}']  // deployer", "0a1b2c3d4e5f6071" * 4),
    ("new ethers.Wallet(\"0x{}\")", "0a1b2c3d4e5f6071" * 4),
    ("mnemonic for the test: {}",
    "velvet orbit lunar harvest puzzle copper ribbon wagon meadow kitten stamp dolphin"),
    ("the seed phrase is {} and it fails", "acid bone cave dawn echo fern glad hawk iron jump kite lamp"),
    ("PIN for the signing token is {}, right?", "739164"), ("SIM PIN: {}", "8264"), ("The alarm PIN is {}.",
    "4821"),
    ('[{{"name": "app_session", "value": "{}", "path": "/"}}]', "eyJpdiI6Ik1Yf3b6xXr9Yz42mEUJ78"),
    (".a.io\tTRUE\t/\tTRUE\t1767225600\tsession\t{}", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    ('cookies = {{"_lab_session": "{}"}}', "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    ("export RESTIC_PASSWORD=\"{}\"", "eight brown kettles on a shelf"),
    ("the passphrase for the key is '{}', and", "seven grey umbrellas"),
    ("session({{\n  secret: '{}',\n}})", "purple camels dance at 7"),
    ("mail.login(\"a\", \"{}\")", "jxkq wvzt plmo abcd"),
    ("New wifi password: {}\nTell the others", "waffleseverynight"),
    ("password={}\nhost=a", "Thimble;Quartz6"), ("proxy_set_header X-Internal-Auth \"{}\";",
    "0a1b2c3d4e5f" * 4),
    ("params[\"appid\"] = \"{}\"", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
    ("createHmac(\"sha256\", \"{}\")", "0a1b2c3d4e5f6071" * 4),
]  # fmt: skip
PERSONAL = [
    "jane.doe@acme.photography", "JANE_DOE@ACME.IO", "jane@xn--bcher-kva.example", "jane@[192.0.2.7]",
    "jane\\u0040acme.io", "0474/82.93.07", "0533 719 57 18", "4539.7182.0463.9578", "2200 7381 9264 5074",
    "jane (at) acme (dot) org", "jane [at] acme.de", "jane.doe at acme dot com", "jane&#64;acme.io",
    "(11) 97905-2690", "(040) 482 91-63", "(0118) 887 2767", "00491546582822", "0031 89 2343652",
    "090-5774-5125", "+49 (0)89 / 4523211", "8 (946) 773-34-87",
    "+55 (11) 97905-2690", "6263718795135656706", "fi2112345600000785",
]  # fmt: skip
LOOK_ALIKES = [
    "Set-Cookie: theme=dark; Path=/; Max-Age=31536000",
    'If-None-Match: W/"[w27]"',
    '{"kty":"RSA","kid":"[w27]"}',
    "<ProjectGuid>{9A19103F-16F7-4668-BE54-9A1E7A4F7556}</ProjectGuid>",
    "STRIPE_PUBLISHABLE_KEY=pk_test_[w24]",
    "$password = $cred.GetNetworkCredential().Password",
    "FEN: r1bqkbnr/1ppp1ppp/p1n5/1B2p3/4P3/5N2/PPPP1PPP/RNBQK2R w KQkq - 0 4",
    "minisign -Vm release.tar.gz -P RWQ[w53]",
    "validate({ password: 'required|min:12', password_confirmation: 'same:password' })",
    "const wasm = 'AGFzbQEAAAABBwFgAn9/AX8DAgEABwcBA2FkZAAACgkBBwAgACABags=';",
    "next_cursor = 'eyJwYWdlIjoyLCJzaXplIjo1MH0='",
    "token_embedding_projection2x = 1",
    'read -rs -p "Password: " password\nexport PGPASSWORD="$password"',
    "assert make_dsn(user='u', password='p') == 'postgresql://u:p@h/d'",
    "user_data = 'IyEvYmluL3NoCmFwdC1nZXQgdXBkYXRlCmFwdC1nZXQgaW5zdGFsbCAteSBjdXJsCg=='",
    'PASSWORD_INPUT = "user-password-input-field"',
    "# user web, password must_change",
    "La contraseña del servidor de correo es obligatoria",
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
    "https://hooks.slack.com/services/XXX/YYY/ZZZ and"
    " mongodb+srv://<username>:<password>@cluster0.mongodb.net",
    "| password | required |\n|---|---|\n| hashed before it is stored | yes |",
    "key,token,count\nid,word_and_tag,3\n",
    "image: registry.io/app:v1.2@sha256:[x64]\ndocker pull redis:7.2@sha256:[x64]",
    "model.start('[w8]'); app.init('default_profile_of_the_user'); run login now",
    "pwd = {current_dir}; password={password}",
    "password = get_password('db-user-2024') or default_password",
    # Versions, types and names after the name of a secret.
    "jsonwebtoken 9.0.2-beta.20240311+build.88f1c2d\nlibsecret-1-0 0.21.4-1build3",
    "image: ghcr.io/a/token-service:2024.03.11-2712702",
    "   4: auth::token::parse::h[x16]\n   5: std::token::Token2::new",
    "arn:aws:secretsmanager:eu-west-1:389581572342:secret:prod/db/password-10nNyy",
    "password_encryption = scram-sha-256\npassword_changed_at: 2024-03-11T12:00:00Z\npsk: wpa2-personal",
    "func Put(key string, token *oauth2.Token) error\npassword: String2,",
    "annotations:\n  checksum/secret: [x64]",
    "{ password: 'Wachtwoord', secret: 'Geheim', passwordLabel: 'Contraseña' }",
    '<color name="passwordWeak">#FFB00020</color>\n$password-color: #3f51b5;',
    "['[CLS]', 'reset', '##ting', 'the', 'pass', '##word']",
    # What is public: keys of sites, digests, addresses, requests for certificates, examples of documents.
    '<div data-sitekey="6LcNfKqb[w32]"></div>\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\nx-amz-version-id: [w32]",
    '{"kty":"EC","x":"[w43]","y":"[w43]"}',
    "-----BEGIN CERTIFICATE REQUEST-----\n[w64]\n[w64]\n-----END CERTIFICATE REQUEST-----",
    "sed -n '/-----BEGIN RSA PRIVATE" + " KEY-----/,/-----END RSA PRIVATE" + " KEY-----/p' a",
    "//# sourceMappingURL=data:application/json;base64,[w86]==",
    "AWS_ACCESS_KEY_ID=AKIA"
    + "IOSFODNN7EXAMPLE\nAWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "address constant USDC = 0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48;\ntx 0x[x64] mined",
    'declare_id!("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA");',
    # What a program says about passwords.
    "def is_strong_password(p):\n    '>>> is_strong_password(\"Abcdef1!\")'\n    return len(p) > 7",
    "assert distance('password', 'passw0rd') == 1\nassert mask_password('hunter2hunter2') == '***'",
    'expect(isValidPassword("Abcdef1!")).toBe(true)',
    "# a password has 8-64 characters, one digit and one of !@#$%",
    "The password is hashed with PBKDF2-SHA256, the token is v2-beta only.",
    "log in to Node12Worker or connect to db01/App2Schema, with GitHub/GitLab2 accounts; set to Medium2Large",
    "the password policy went from 8 to 12Characters; the login moved to components/LoginForm2.tsx",
    "INSERT INTO t (id, password) VALUES (1, NULL), ($1, $2), (2, crypt($1, gen_salt('bf')));",
    "bind('0.0.0.0', 8080); load('model.pt', 'cuda:0'); auth('basic', 'digest'); connect('h', 5432, 'shop')",
    "mnemonic: the words that you remember are chosen from a list of two thousand words that are short",
    '{"name": "session_count", "value": "42"}\nPassword:\n  must be 8 characters\nPIN = 13',
]
VALUES = [
    "SQUARE_ACCESS_TOKEN=EAAA{}\nX=production\n".format("k3Q" * 20),
    "SMTP_USER=jane@acme.io\nSMTP_PASS=bouteille/mer26   # rotate in June\nSMTP_PORT=587\n",
    "name,mail,city\nWeiss,jane@acme.io,Ulm\n", "(jane@acme.io)\n", "id,card\n1,4111111111111111\n",
    "Hotline +49-221-4829163\n", "[auth]\ntoken=sntrys_{}\n".format("k3Q" * 20),
]  # fmt: skip
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


@pytest.mark.parametrize("place", PLACES_OF_CHOSEN)
def test_a_password_that_someone_chose_is_gone(place: str) -> None:
    for password in CHOSEN:
        redacted = redact(place % password)
        assert password not in redacted and redact(redacted) == redacted


@pytest.mark.parametrize(("place", "secret"), MORE_SECRETS)
def test_a_secret_that_only_its_place_tells_is_gone(place: str, secret: str) -> None:
    redacted = redact(place.format(secret))
    assert secret not in redacted and redact(redacted) == redacted


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


@pytest.mark.parametrize("text", VALUES)
def test_values_that_are_expressions_by_accident_still_are(text: str) -> None:
    ast.parse(text)
    redacted = redact(text)
    ast.parse(redacted)
    assert redacted != text and redact(redacted) == redacted


def test_a_document_in_json_is_one_after_redaction() -> None:
    text = json.dumps({"card": 4111111111111111, "cards": [4111111111111111], "mail": "jane@acme.io"})
    assert json.loads(redact(text)) == {"card": "<CARD>", "cards": ["<CARD>"], "mail": "<EMAIL>"}


def test_each_token_form_has_an_anchor_that_it_needs_and_a_source() -> None:
    for form in (*DISTINCT_TOKENS, *AMBIGUOUS_TOKENS, *WEBHOOK_FORMS):
        assert form.source.startswith("https://") and form.anchors.split()
        assert re.compile(form.pattern).search("x" * 40) is None
    assert len({rule.pattern for rule in ALL_RULES}) == len(ALL_RULES)
