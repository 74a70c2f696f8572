//! The claims of a token: where each identity provider puts the subject, the role and the audience.
//!
//! A claim is named by a path: names of members, joined by dots, such as `realm_access.roles`. The name of a member may
//! itself contain dots, as in `https://shop.example/roles`: a longer name is tried before a shorter one.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::auth::{Error, Role, Settings};

/// Longest path of a claim, in characters.
const PATH_CHARS_MAX: usize = 255;

/// The rules that turn the claims of a token into a principal.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    subject: String,
    role: String,
    audience: String,
    audiences: Vec<String>,
    /// Role by value of the role claim. Empty: the claim is one text, the name of a role.
    roles: BTreeMap<String, Role>,
}

impl Rules {
    /// Reads the rules from the settings.
    ///
    /// # Errors
    /// A path is empty or too long, there is no audience, or the mapping of roles cannot be read.
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        for (name, path) in [
            ("jwt_subject_claim", &settings.jwt_subject_claim),
            ("jwt_role_claim", &settings.jwt_role_claim),
            ("jwt_audience_claim", &settings.jwt_audience_claim),
        ] {
            if path.is_empty() || path.chars().count() > PATH_CHARS_MAX || path.chars().any(char::is_control) {
                return Err(invalid(
                    name,
                    "give the name of a claim, such as role, realm_access.roles or https://shop.example/roles",
                ));
            }
        }
        let audiences: Vec<_> = settings
            .jwt_audience
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        if audiences.is_empty() {
            return Err(invalid("jwt_audience", "give one or more audiences, separated by commas"));
        }
        Ok(Self {
            subject: settings.jwt_subject_claim.clone(),
            role: settings.jwt_role_claim.clone(),
            audience: settings.jwt_audience_claim.clone(),
            audiences,
            roles: read_roles(&settings.jwt_roles)?,
        })
    }

    /// Returns the subject.
    ///
    /// # Errors
    /// A sentence that names the claim and its setting.
    pub(super) fn subject<'a>(&self, claims: &'a Map<String, Value>) -> Result<&'a str, String> {
        match find(claims, &self.subject) {
            Some(Value::String(subject)) if kernel::id::is_valid(subject, kernel::id::CHARS_MAX) => Ok(subject),
            None => Err(format!("The token lacks the claim {} (setting jwt_subject_claim).", self.subject)),
            Some(_) => Err(format!(
                "The claim {} (setting jwt_subject_claim) must be a text of 1 to {} characters {}.",
                self.subject,
                kernel::id::CHARS_MAX,
                kernel::id::RULE
            )),
        }
    }

    /// Returns the role: of several values, the most powerful role to which the setting `jwt_roles` maps one of them.
    ///
    /// # Errors
    /// A sentence that names the claim and the settings. A missing and an unknown role are refused.
    pub(super) fn role(&self, claims: &Map<String, Value>) -> Result<Role, String> {
        let Some(value) = find(claims, &self.role) else {
            return Err(format!("The token lacks the claim {} (setting jwt_role_claim).", self.role));
        };
        if self.roles.is_empty() {
            return value.as_str().and_then(named).ok_or_else(|| {
                format!(
                    "The claim {} must be customer, staff or admin. The setting jwt_roles maps other values and lists to roles.",
                    self.role
                )
            });
        }
        let role = texts(value).iter().filter_map(|text| self.roles.get(text.as_str())).max();
        role.copied().ok_or_else(|| {
            format!(
                "The claim {} (setting jwt_role_claim) has no value that the setting jwt_roles maps to a role.",
                self.role
            )
        })
    }

    /// Checks that the token is meant for this service.
    ///
    /// # Errors
    /// A sentence that names the claim and the settings.
    pub(super) fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), String> {
        let is_ours = |value: &Value| value.as_str().is_some_and(|name| self.audiences.iter().any(|ours| ours == name));
        let found = match find(claims, &self.audience) {
            None => {
                // The tokens that Amazon Cognito and Keycloak issue by default have no `aud` for the service.
                let hint =
                    ["client_id", "azp"].into_iter().find(|name| self.audience == "aud" && claims.contains_key(*name));
                let hint = hint.map_or_else(String::new, |name| {
                    format!(" It has the claim {name}: set jwt_audience_claim to check that claim in its place.")
                });
                return Err(format!("The token lacks the claim {} (setting jwt_audience_claim).{hint}", self.audience));
            }
            Some(Value::Array(values)) => values.iter().any(is_ours),
            Some(value) => is_ours(value),
        };
        match found {
            true => Ok(()),
            false => Err(format!(
                "The token has a wrong audience: the claim {} contains none of the setting jwt_audience.",
                self.audience
            )),
        }
    }

    /// Writes the claims from which these rules read this subject, role and audience.
    ///
    /// # Errors
    /// No value is mapped to the role.
    pub(super) fn write(&self, claims: &mut Map<String, Value>, subject: &str, role: Role) -> Result<(), Error> {
        let value = match self.roles.is_empty() {
            true => role.as_str(),
            false => self.roles.iter().find(|(_, known)| **known == role).ok_or(Error::UnmappedRole(role))?.0,
        };
        // The claim `sub` is required whatever the setting.
        claims.insert("sub".to_owned(), subject.into());
        claims.insert(self.subject.clone(), subject.into());
        claims.insert(self.role.clone(), value.into());
        claims.insert(self.audience.clone(), self.audiences[0].as_str().into());
        Ok(())
    }
}

/// Finds the claim with a path. A name is compared whole first, then the parts before each dot.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(found) = claims.get(path) {
        return Some(found).filter(|value| !value.is_null());
    }
    path.rmatch_indices('.').find_map(|(at, _)| find(claims.get(&path[..at])?.as_object()?, &path[at + 1..]))
}

/// Returns the values of a role claim: the elements of a list, the names of an object's members (as Zitadel writes
/// roles), or of a text the whole text and the parts between spaces.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().filter(|value| !value.is_array()).flat_map(single).collect(),
        Value::Object(members) => {
            let is_set = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
            members.iter().filter(|(_, value)| is_set(value)).map(|(name, _)| name.clone()).collect()
        }
        value => {
            let mut texts = single(value);
            texts.extend(value.as_str().into_iter().flat_map(str::split_whitespace).map(str::to_owned));
            texts
        }
    }
}

fn single(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Bool(value) => vec![value.to_string()],
        _ => vec![],
    }
}

fn named(name: &str) -> Option<Role> {
    [Role::Customer, Role::Staff, Role::Admin].into_iter().find(|role| role.as_str() == name)
}

/// Reads the mapping from values of the role claim to roles: `VALUE=ROLE`, separated by commas, or a JSON object for
/// values that contain commas.
fn read_roles(text: &str) -> Result<BTreeMap<String, Role>, Error> {
    let text = text.trim();
    let wrong = || {
        invalid(
            "jwt_roles",
            "give VALUE=ROLE, separated by commas, such as shop-admin=admin,shop-clerk=staff, or a JSON object such as \
             {\"CN=Clerks,OU=Shop\":\"staff\"}; the roles are customer, staff and admin",
        )
    };
    if text.starts_with('{') {
        let map: BTreeMap<String, String> = serde_json::from_str(text).map_err(|_| wrong())?;
        return map.into_iter().map(|(value, role)| Ok((value, named(&role).ok_or_else(wrong)?))).collect();
    }
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (value, role) = entry.rsplit_once('=').ok_or_else(wrong)?;
            match (value.trim(), named(role.trim())) {
                (value, Some(role)) if !value.is_empty() => Ok((value.to_owned(), role)),
                _ => Err(wrong()),
            }
        })
        .collect()
}

fn invalid(setting: &'static str, allowed: &'static str) -> Error {
    Error::Setting { setting, allowed }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(role_claim: &str, roles: &str) -> Rules {
        let settings = Settings { jwt_role_claim: role_claim.into(), jwt_roles: roles.into(), ..Settings::default() };
        Rules::new(&settings).unwrap()
    }

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_claim_is_found_by_its_path() {
        let all = claims(json!({
            "realm_access": {"roles": ["a"]},
            "https://shop.example/roles": ["b"],
            "resource_access": {"shop.web": {"roles": ["c"]}},
            "cognito:groups": ["d"],
            "nothing": null,
        }));
        for (path, expected) in [
            ("realm_access.roles", "a"),
            ("https://shop.example/roles", "b"),
            ("resource_access.shop.web.roles", "c"),
            ("cognito:groups", "d"),
        ] {
            assert_eq!(find(&all, path), Some(&json!([expected])), "{path}");
        }
        for path in ["roles", "realm_access.role", "realm_access.roles.a", "nothing", "", ".", "realm_access."] {
            assert_eq!(find(&all, path), None, "{path}");
        }
    }

    #[test]
    fn only_mapped_values_give_a_role() {
        let mapped = rules("roles", "shop-admin=admin, shop-clerk=staff,shopper=customer,Shop Admin=admin,true=staff");
        let role = |value: Value| mapped.role(&claims(json!({"roles": value}))).ok();
        assert_eq!(role(json!(["offline_access", "shop-clerk"])), Some(Role::Staff));
        assert_eq!(role(json!(["shopper", "shop-admin", "shop-clerk"])), Some(Role::Admin));
        assert_eq!(role(json!("shopper openid")), Some(Role::Customer));
        assert_eq!(role(json!({"shop-admin": false, "shop-clerk": {"org": "shop"}})), Some(Role::Staff));
        assert_eq!(role(json!({"shop-admin": null})), None);
        assert_eq!(role(json!("Shop Admin")), Some(Role::Admin));
        assert_eq!(role(json!(true)), Some(Role::Staff));
        assert_eq!(role(json!({"shop-clerk": {"2346": "shop.example"}})), Some(Role::Staff));
        // The names of roles, values of another case, and a list inside of a list mean nothing.
        for value in [
            json!("admin"),
            json!(["admin"]),
            json!("SHOP-ADMIN"),
            json!([["shop-admin"]]),
            json!([]),
            json!({}),
            json!(7),
        ] {
            assert_eq!(role(value.clone()), None, "{value}");
        }
        let text = mapped.role(&claims(json!({"roles": "admin"}))).unwrap_err();
        assert!(text.contains("roles (setting jwt_role_claim)") && text.contains("jwt_roles"), "{text}");
        assert!(mapped.role(&claims(json!({}))).unwrap_err().contains("lacks the claim roles"));
    }

    #[test]
    fn without_a_mapping_the_claim_is_the_name_of_a_role() {
        let plain = rules("role", "");
        assert_eq!(plain.role(&claims(json!({"role": "staff"}))), Ok(Role::Staff));
        for value in [json!(["admin"]), json!("admin staff"), json!("ADMIN"), json!("root"), json!(true)] {
            assert!(plain.role(&claims(json!({"role": value}))).is_err());
        }
    }

    #[test]
    fn a_mapping_may_contain_names_of_directories() {
        let directory = rules("groups", r#"{"CN=Clerks,OU=Shop,DC=example": "staff"}"#);
        let of = claims(json!({"groups": ["CN=Clerks,OU=Shop,DC=example"]}));
        assert_eq!(directory.role(&of), Ok(Role::Staff));
    }

    #[test]
    fn unreadable_settings_name_themselves() {
        for (name, settings) in [
            ("jwt_roles", Settings { jwt_roles: "clerk".into(), ..Settings::default() }),
            ("jwt_roles", Settings { jwt_roles: "clerk=root".into(), ..Settings::default() }),
            ("jwt_roles", Settings { jwt_roles: "{\"clerk\":1}".into(), ..Settings::default() }),
            ("jwt_roles", Settings { jwt_roles: "=admin".into(), ..Settings::default() }),
            ("jwt_audience", Settings { jwt_audience: " , ".into(), ..Settings::default() }),
            ("jwt_role_claim", Settings { jwt_role_claim: String::new(), ..Settings::default() }),
        ] {
            let error = Rules::new(&settings).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn one_of_several_audiences_is_enough() {
        let settings = Settings { jwt_audience: "shop, api://shop".into(), ..Settings::default() };
        let rules = Rules::new(&settings).unwrap();
        let check = |value: Value| rules.check_audience(&claims(json!({"aud": value})));
        assert!(check(json!("shop")).is_ok() && check(json!(["account", "api://shop"])).is_ok());
        for value in [json!("other"), json!([]), json!("shop, api://shop"), json!(7)] {
            assert!(check(value.clone()).unwrap_err().contains("wrong audience"), "{value}");
        }
        let text = rules.check_audience(&claims(json!({"client_id": "shop"}))).unwrap_err();
        assert!(text.contains("client_id: set jwt_audience_claim"), "{text}");
        let settings = Settings { jwt_audience_claim: "client_id".into(), ..settings };
        assert!(Rules::new(&settings).unwrap().check_audience(&claims(json!({"client_id": "shop"}))).is_ok());
    }
}
