"""Identity providers for the tests: serves a discovery document and a JWKS for each provider, and prints one line of
JSON per provider, with the settings of Docket and with tokens in the shape that the provider issues.

The shapes follow the providers' documentation. Only hosts and keys differ: every issuer is on 127.0.0.1.
`docs/identity.md` has the same table.

    python3 issuer.py      # ends when its standard input closes
"""

import json
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

warnings.simplefilter("ignore")  # authlib.jose works until authlib 2.0
from authlib.jose import JsonWebKey, jwt  # noqa: E402

NOW = int(time.time())
UUID = "f3c1d7ba-6c7e-4f0a-9f44-1d2b6a0e8c55"
PAGES = {}


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        page = PAGES.get(self.path)
        self.send_response(200 if page else 404)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(page or {}).encode())

    def log_message(self, *_):
        pass


SERVER = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
BASE = f"http://127.0.0.1:{SERVER.server_port}"


class Provider:
    """A provider with its own key. `claims` are those that every one of its tokens has."""

    def __init__(self, name, path, settings, claims, kty="RSA", extra_keys=(), public=None):
        self.name, self.issuer, self.settings, self.claims = name, BASE + path, settings, claims
        options = {"kid": f"key-of-{name}", "use": "sig"}
        size = 2048 if kty == "RSA" else "P-256"
        self.alg = "RS256" if kty == "RSA" else "ES256"
        self.key = JsonWebKey.generate_key(kty, size, options, is_private=True)
        shown = self.key.as_dict(is_private=False) | (public or {"alg": self.alg})
        keys = f"/keys/{name.replace(' ', '-')}"
        PAGES[keys] = {"keys": [*extra_keys, shown]}
        discovery = path.rstrip("/") + "/.well-known/openid-configuration"
        PAGES[discovery] = {
            "issuer": self.issuer,
            "jwks_uri": BASE + keys,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "id_token_signing_alg_values_supported": [self.alg],
            "subject_types_supported": ["public"],
        }
        self.cases = []

    def case(self, name, expect, header=None, **claims):
        """Adds a token. `expect` is (subject, role), or a part of the reason of the refusal. None removes a claim."""
        claims = {"iss": self.issuer, "iat": NOW, "exp": NOW + 3600} | self.claims | claims
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": self.alg, "kid": self.key.as_dict()["kid"], "typ": "JWT"} | (header or {})
        token = jwt.encode(header, claims, self.key).decode()
        self.cases.append({"name": name, "token": token, "expect": expect})

    def line(self):
        settings = {"DOCKET_OIDC_ISSUER": self.issuer} | self.settings
        return json.dumps({"name": self.name, "settings": settings, "cases": self.cases})


def keycloak():
    encryption = JsonWebKey.generate_key("RSA", 2048, {"kid": "enc", "use": "enc", "alg": "RSA-OAEP"}, is_private=True)
    claims = {
        "jti": f"onrtro:{UUID}",
        "sub": UUID,
        "typ": "Bearer",
        "azp": "shop-web",
        "sid": "0a1b2c3d",
        "acr": "1",
        "allowed-origins": ["https://shop.example"],
        "scope": "openid profile email",
        "email_verified": True,
        "preferred_username": "ada",
        "email": "ada@example.com",
    }
    extra = [encryption.as_dict(is_private=False)]
    standard = ["default-roles-shop", "offline_access", "uma_authorization"]
    roles = lambda *mine: {"roles": [*standard, *mine]}
    realm = Provider(
        "Keycloak",
        "/realms/shop",
        {
            "DOCKET_JWT_AUDIENCE": "docket",
            "DOCKET_JWT_ROLE_CLAIM": "realm_access.roles",
            "DOCKET_JWT_ROLES": "shop-admin=admin,shop-clerk=staff,shopper=customer",
        },
        claims | {"aud": ["docket", "account"]},
        extra_keys=extra,
    )
    realm.case("realm role shopper", (UUID, "customer"), realm_access=roles("shopper"))
    realm.case("realm role shop-clerk", (UUID, "staff"), realm_access=roles("shop-clerk"))
    realm.case("realm roles shopper and shop-admin", (UUID, "admin"), realm_access=roles("shopper", "shop-admin"))
    realm.case("standard roles only", "realm_access.roles", realm_access=roles())
    realm.case("realm role admin, which is not mapped", "jwt_roles", realm_access=roles("admin"))
    realm.case("lightweight token without roles", "lacks the claim realm_access.roles")
    realm.case("default audience account", "jwt_audience", realm_access=roles("shopper"), aud="account")
    realm.case("another realm", "issuer", realm_access=roles("shopper"), iss=f"{BASE}/realms/other")
    realm.case("RFC 9068 header", (UUID, "customer"), {"typ": "at+jwt"}, realm_access=roles("shopper"))
    client = Provider(
        "Keycloak, client roles and azp",
        "/realms/web",
        {
            "DOCKET_JWT_AUDIENCE": "shop.web",
            "DOCKET_JWT_AUDIENCE_CLAIM": "azp",
            "DOCKET_JWT_ROLE_CLAIM": "resource_access.shop.web.roles",
            "DOCKET_JWT_ROLES": "admin=admin,clerk=staff,shopper=customer",
        },
        claims | {"aud": "account", "azp": "shop.web"},
        extra_keys=extra,
    )
    access = lambda *mine: {"account": {"roles": ["manage-account"]}, "shop.web": {"roles": [*mine]}}
    client.case("client role clerk", (UUID, "staff"), resource_access=access("clerk"))
    client.case("client role shopper", (UUID, "customer"), resource_access=access("shopper"))
    client.case("token of another client", "azp", resource_access=access("clerk"), azp="other")
    return [realm, client]


def auth0():
    auth0 = Provider(
        "Auth0",
        "/auth0/",
        {
            "DOCKET_JWT_AUDIENCE": "https://api.shop.example",
            "DOCKET_JWT_ROLE_CLAIM": "https://shop.example/roles",
            "DOCKET_JWT_ROLES": "Shop Admin=admin,Clerk=staff,Shopper=customer",
        },
        {
            "sub": "auth0|65f3a0c2e1b7d9f4a5c6d7e8",
            "aud": ["https://api.shop.example", "https://shop.eu.auth0.com/userinfo"],
            "scope": "openid profile email",
            "azp": "kq0Lr2xSYbXzuVqG1m5wqP7h",
        },
    )
    subject, roles = "auth0|65f3a0c2e1b7d9f4a5c6d7e8", lambda *mine: {"https://shop.example/roles": [*mine]}
    auth0.case("role Shopper", (subject, "customer"), **roles("Shopper"))
    auth0.case("role Clerk", (subject, "staff"), **roles("Clerk"))
    auth0.case("role Shop Admin", (subject, "admin"), **roles("Shop Admin"))
    auth0.case("social login", ("google-oauth2|1157", "customer"), sub="google-oauth2|1157", **roles("Shopper"))
    auth0.case("no role: no Action adds the claim", "lacks the claim https://shop.example/roles")
    machine = {"sub": "kq0Lr2xSYbXzuVqG1m5wqP7h@clients", "aud": "https://api.shop.example", "gty": "client-credentials"}
    auth0.case("client credentials with a role", (machine["sub"], "staff"), **machine, **roles("Clerk"))
    auth0.case("client credentials without a role", "lacks the claim", **machine)
    auth0.case("opaque audience: userinfo only", "jwt_audience", aud="https://shop.eu.auth0.com/userinfo", **roles("Clerk"))
    return [auth0]


def entra():
    oid, tenant = "2c0f6d34-9d1e-4a52-8b0f-7f5f2c1d9e11", "9188040d-6c67-4c5b-b112-36a304b66dad"
    application = "6e74172b-be56-4843-9ff4-e66a39bb12e3"
    settings = {
        "DOCKET_JWT_SUBJECT_CLAIM": "oid",
        "DOCKET_JWT_ROLE_CLAIM": "roles",
        "DOCKET_JWT_ROLES": "Shop.Admin=admin,Shop.Clerk=staff,Shop.Customer=customer",
    }
    claims = {"oid": oid, "sub": "GXlKv0q3-pairwise", "tid": tenant, "uti": "AbCd", "rh": "0.AX8A", "name": "Ada"}
    shown = {"x5t": "nOo3ZDrODXEK1jKWhXslHR_KXEg", "x5c": ["MIIC"]}  # and no alg
    v2 = Provider(
        "Entra ID, version 2",
        f"/{tenant}/v2.0",
        settings | {"DOCKET_JWT_AUDIENCE": application},
        claims | {"aud": application, "azp": "0b5e", "azpacr": "0", "scp": "access_as_user", "ver": "2.0"},
        public=shown,
    )
    v2.case("app role Shop.Customer", (oid, "customer"), roles=["Shop.Customer"])
    v2.case("app roles Shop.Customer and Shop.Admin", (oid, "admin"), roles=["Shop.Customer", "Shop.Admin"])
    v2.case("no app role is assigned", "lacks the claim roles")
    overage = {"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://graph"}}}
    v2.case("groups overage", "lacks the claim roles", **overage)
    v2.case("token of Microsoft Graph", "jwt_audience", aud="00000003-0000-0000-c000-000000000000", roles=["Shop.Admin"])
    v2.case("guest without oid", "jwt_subject_claim", oid=None, roles=["Shop.Customer"])
    v1 = Provider(
        "Entra ID, version 1",
        f"/sts/{tenant}/",
        settings | {"DOCKET_JWT_AUDIENCE": f"api://{application},{application}"},
        claims | {"aud": f"api://{application}", "appid": "0b5e", "appidacr": "0", "upn": "ada@example.com", "ver": "1.0"},
        public=shown,
    )
    v1.case("app role Shop.Clerk", (oid, "staff"), roles=["Shop.Clerk"])
    v1.case("application token", (oid, "admin"), roles=["Shop.Admin"], idtyp="app", upn=None)
    v1.case("token of version 2", "issuer", iss=f"{BASE}/{tenant}/v2.0", roles=["Shop.Clerk"])
    return [v2, v1]


def cognito():
    client = "7abc1d2efg3hijkl4mnopq5rst"
    cognito = Provider(
        "Cognito",
        "/eu-west-1_AbCdEf123",
        {
            "DOCKET_JWT_AUDIENCE": client,
            "DOCKET_JWT_AUDIENCE_CLAIM": "client_id",
            "DOCKET_JWT_ROLE_CLAIM": "cognito:groups",
            "DOCKET_JWT_ROLES": "admins=admin,clerks=staff,shoppers=customer",
        },
        {
            "sub": UUID,
            "version": 2,
            "client_id": client,
            "origin_jti": UUID,
            "event_id": UUID,
            "token_use": "access",
            "scope": "aws.cognito.signin.user.admin openid",
            "auth_time": NOW,
            "jti": UUID,
            "username": "ada",
        },
    )
    cognito.case("access token, group shoppers", (UUID, "customer"), **{"cognito:groups": ["shoppers"]})
    cognito.case("access token, two groups", (UUID, "staff"), **{"cognito:groups": ["eu-west-1_AbCdEf123_Google", "clerks"]})
    cognito.case("access token without groups", "lacks the claim cognito:groups")
    cognito.case("another app client", "client_id", client_id="other", **{"cognito:groups": ["shoppers"]})
    identity = {"aud": client, "client_id": None, "token_use": "id", "cognito:groups": ["clerks"], "cognito:username": "ada"}
    cognito.case("ID token", "lacks the claim client_id", **identity)
    plain = Provider(
        "Cognito without jwt_audience_claim",
        "/eu-west-1_Plain",
        {"DOCKET_JWT_AUDIENCE": client, "DOCKET_JWT_ROLE_CLAIM": "cognito:groups", "DOCKET_JWT_ROLES": "clerks=staff"},
        cognito.claims,
    )
    plain.case("access token", "client_id: set jwt_audience_claim", **{"cognito:groups": ["clerks"]})
    plain.case("ID token", (UUID, "staff"), **identity)
    return [cognito, plain]


def firebase():
    project, subject = "shop-1234", "Xk3pQ9rTzUaVbWcYdZeF12345678"
    claims = {
        "aud": project,
        "auth_time": NOW,
        "user_id": subject,
        "sub": subject,
        "email": "ada@example.com",
        "firebase": {"identities": {"email": ["ada@example.com"]}, "sign_in_provider": "password"},
    }
    role = Provider("Firebase", f"/{project}", {"DOCKET_JWT_AUDIENCE": project}, claims)
    role.case("custom claim role: customer", (subject, "customer"), role="customer")
    role.case("custom claim role: admin", (subject, "admin"), role="admin")
    role.case("no custom claim", "lacks the claim role")
    role.case("another project", "jwt_audience", role="customer", aud="shop-9999")
    flag = Provider(
        "Firebase, custom claim clerk: true",
        "/shop-flag",
        {"DOCKET_JWT_AUDIENCE": "shop-flag", "DOCKET_JWT_ROLE_CLAIM": "clerk", "DOCKET_JWT_ROLES": "true=staff"},
        claims | {"aud": "shop-flag"},
    )
    flag.case("clerk: true", (subject, "staff"), clerk=True)
    flag.case("clerk: false", "jwt_roles", clerk=False)
    return [role, flag]


def supabase():
    supabase = Provider(
        "Supabase",
        "/auth/v1",
        {
            "DOCKET_JWT_AUDIENCE": "authenticated",
            "DOCKET_JWT_ROLE_CLAIM": "app_metadata.role",
            "DOCKET_JWT_ROLES": "clerk=staff,shopper=customer",
        },
        {"sub": UUID, "aud": "authenticated", "role": "authenticated", "aal": "aal1", "session_id": UUID},
        kty="EC",
    )
    metadata = lambda **more: {"provider": "email", "providers": ["email"]} | more
    supabase.case("app_metadata.role: shopper", (UUID, "customer"), app_metadata=metadata(role="shopper"))
    supabase.case("role only in user_metadata", "app_metadata.role", app_metadata=metadata(), user_metadata={"role": "clerk"})
    supabase.case("anonymous key", "jwt_audience", aud="anon", role="anon", app_metadata=metadata(role="shopper"))
    return [supabase]


def zitadel():
    zitadel = Provider(
        "Zitadel",
        "/zitadel",
        {
            "DOCKET_JWT_AUDIENCE": "234567890123456789",
            "DOCKET_JWT_ROLE_CLAIM": "urn:zitadel:iam:org:project:roles",
            "DOCKET_JWT_ROLES": "shop-clerk=staff,shopper=customer",
        },
        {"sub": "163840776835432705", "aud": ["234567890123456789", "987654321098765432"], "jti": "V2_1", "nbf": NOW},
    )
    roles = lambda *mine: {"urn:zitadel:iam:org:project:roles": {role: {"2346": "shop.zitadel.cloud"} for role in mine}}
    zitadel.case("project role shopper", ("163840776835432705", "customer"), **roles("shopper"))
    zitadel.case("project roles shopper and shop-clerk", ("163840776835432705", "staff"), **roles("shopper", "shop-clerk"))
    zitadel.case("no project role", "lacks the claim urn:zitadel:iam:org:project:roles")
    return [zitadel]


def main():
    threading.Thread(target=SERVER.serve_forever, daemon=True).start()
    for provider in [*keycloak(), *auth0(), *entra(), *cognito(), *firebase(), *supabase(), *zitadel()]:
        print(provider.line(), flush=True)
    print("{}", flush=True)
    sys.stdin.read()


main()
