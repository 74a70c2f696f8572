//! Checked values: each is parsed once, at the edge, and needs no check after that.
//!
//! Stored events are decoded through these same checks, so a limit may be widened but never tightened.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Unexpected};
use serde::{Deserialize, Serialize, Serializer};

/// Why a value was refused; the message says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text or number is not of the form that this value takes.
    #[error("{value} must be {allowed}")]
    Form {
        /// The value's name in the interface, such as `sku`.
        value: &'static str,
        /// The form that it takes.
        allowed: &'static str,
    },
    /// The amount has more decimals than its currency has minor digits.
    #[error("an amount in {currency} must have at most {} decimals, such as \"{}\"", currency.minor_digits(), format_minor(255, *currency))]
    TooPrecise {
        /// The currency that the amount was to be in.
        currency: Currency,
    },
    /// There are more than [`Attributes::ENTRIES_MAX`] attributes.
    #[error("attributes must be at most {max} entries, not {0}", max = Attributes::ENTRIES_MAX)]
    TooManyAttributes(usize),
    /// An attribute's key is not of the allowed form; it is shown shortened to the allowed length.
    #[error("an attribute's key must be 1 to 40 characters of A-Z a-z 0-9 _ - ., not {0:?}")]
    AttributeKey(String),
    /// The value under this key is too long or holds control characters.
    #[error("the value of attribute {0} must be at most 500 characters without control characters")]
    AttributeValue(String),
}

/// Declares a value that is a checked text. `$parse` takes the given text and gives back the text to keep, or
/// nothing when it is not of the form that `$allowed` describes; `$pattern` says the same to readers of the schema.
macro_rules! text_value {
    ($(#[$meta:meta])* $name:ident($value:literal, $allowed:literal, $pattern:literal) = $parse:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                let parse: fn(String) -> Option<String> = $parse;
                parse(text).map(Self).ok_or(Error::Form { value: $value, allowed: $allowed })
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $allowed, "pattern": $pattern })
            }
        }
    };
}

text_value! {
    /// An order's id: chosen by the client, or a UUIDv7 text made by the caller.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    OrderId("order_id", "1 to 64 characters of A-Z a-z 0-9 _ -", "^[A-Za-z0-9_-]{1,64}$")
        = |text| is_token(&text, 64, "_-").then_some(text)
}

text_value! {
    /// A customer's id, equal to the `sub` of the customer's token.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    CustomerId("customer_id", "1 to 64 characters of A-Z a-z 0-9 _ -", "^[A-Za-z0-9_-]{1,64}$")
        = |text| is_token(&text, 64, "_-").then_some(text)
}

text_value! {
    /// A stock keeping unit: what is sold. An order has at most one line for each.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    Sku("sku", "1 to 64 characters of A-Z a-z 0-9 _ - .", "^[A-Za-z0-9_.-]{1,64}$")
        = |text| is_token(&text, 64, "_-.").then_some(text)
}

text_value! {
    /// An item's name for people; white space around it is dropped.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    Name("name", "1 to 200 characters without control characters", r"^[^\u0000-\u001f\u007f-\u009f]{1,200}$")
        = |text| trimmed(text, 200)
}

text_value! {
    /// An item's category, by which sales are reported; white space around it is dropped.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    Category("category", "1 to 100 characters without control characters", r"^[^\u0000-\u001f\u007f-\u009f]{1,100}$")
        = |text| trimmed(text, 100)
}

text_value! {
    /// Why an order was cancelled; white space around it is dropped.
    #[derive(Deserialize)]
    #[serde(try_from = "String")]
    Reason("reason", "1 to 500 characters without control characters", r"^[^\u0000-\u001f\u007f-\u009f]{1,500}$")
        = |text| trimmed(text, 500)
}

text_value! {
    /// A sum of money as clients write it: a decimal text such as `2.55`, from 0 to [`Amount::WHOLE_MAX`].
    ///
    /// It has no currency of its own; [`Amount::minor`] gives the exact number in one. In JSON it is a string: a
    /// number is refused, because most JSON readers round it.
    Amount(
        "an amount",
        "a decimal string in quotes such as \"2.55\", with at most 3 decimals, no sign and no exponent, up to 1000000000",
        r"^[0-9]{1,10}(\.[0-9]{1,3})?$"
    ) = |text| is_amount(&text).then_some(text)
}

impl Amount {
    /// The largest amount, in whole units of the currency.
    pub const WHOLE_MAX: i64 = 1_000_000_000;

    /// The amount in the currency's minor units: `2.5` in USD is 250.
    ///
    /// # Errors
    /// [`Error::TooPrecise`] when it has more decimals than the currency has minor digits, be they zeros.
    pub fn minor(&self, currency: Currency) -> Result<i64, Error> {
        let (whole, decimals) = self.0.split_once('.').unwrap_or((&self.0, ""));
        let digits = usize::from(currency.minor_digits());
        if decimals.len() > digits {
            return Err(Error::TooPrecise { currency });
        }
        // At most 10 digits before and 3 after the point: far inside an i64.
        let padding = std::iter::repeat_n(b'0', digits - decimals.len());
        Ok(whole.bytes().chain(decimals.bytes()).chain(padding).fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not deserialize_str: that refuses a number before the visitor can show how to write it.
        deserializer.deserialize_any(AmountVisitor)
    }
}

struct AmountVisitor;

impl AmountVisitor {
    fn refuse_number<E: de::Error>(number: impl fmt::Display, unexpected: Unexpected<'_>) -> Result<Amount, E> {
        match Amount::try_from(number.to_string()) {
            Ok(amount) => Err(E::custom(format_args!(
                "an amount must be a decimal string, not a number: write it in quotes, \"{amount}\""
            ))),
            Err(_) => Err(E::invalid_type(unexpected, &Self)),
        }
    }
}

impl de::Visitor<'_> for AmountVisitor {
    type Value = Amount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a decimal string in quotes such as \"2.55\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Amount, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Amount, E> {
        text.try_into().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Amount, E> {
        Self::refuse_number(number, Unexpected::Unsigned(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Amount, E> {
        Self::refuse_number(number, Unexpected::Signed(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Amount, E> {
        Self::refuse_number(number, Unexpected::Float(number))
    }
}

/// An ISO 4217 currency with 0, 2 or 3 minor digits; USD unless said otherwise.
///
/// Metals, testing codes and the two accounting units with 4 digits are refused: nothing is sold in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency(iso_currency::Currency);

impl Currency {
    /// The code of three capital letters.
    pub fn as_str(self) -> &'static str {
        self.0.code()
    }

    /// How many decimals an amount in this currency may have: 0, 2 or 3.
    pub fn minor_digits(self) -> u8 {
        match self.0.exponent() {
            Some(0) => 0,
            Some(3) => 3,
            _ => 2,
        }
    }
}

impl Default for Currency {
    fn default() -> Self {
        Currency(iso_currency::Currency::USD)
    }
}

impl FromStr for Currency {
    type Err = Error;

    fn from_str(code: &str) -> Result<Self, Error> {
        iso_currency::Currency::from_code(code)
            .filter(|currency| matches!(currency.exponent(), Some(0 | 2 | 3)))
            .map(Currency)
            .ok_or(Error::Form {
                value: "currency",
                allowed: "the ISO 4217 code of a currency in use, such as \"USD\"",
            })
    }
}

impl TryFrom<String> for Currency {
    type Error = Error;

    fn try_from(code: String) -> Result<Self, Error> {
        code.parse()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Currency {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Currency".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "ISO 4217 code", "pattern": "^[A-Z]{3}$" })
    }
}

/// How many pieces of an item: 1 to [`Quantity::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Quantity(u32);

impl Quantity {
    /// The largest quantity, in pieces; also of one order line in sum.
    pub const MAX: u32 = 1_000_000;

    /// The number of pieces.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Quantity {
    type Error = Error;

    fn try_from(pieces: u64) -> Result<Self, Error> {
        u32::try_from(pieces)
            .ok()
            .filter(|pieces| (1..=Quantity::MAX).contains(pieces))
            .map(Quantity)
            .ok_or(Error::Form { value: "quantity", allowed: "a whole number from 1 to 1000000" })
    }
}

impl TryFrom<u32> for Quantity {
    type Error = Error;

    fn try_from(pieces: u32) -> Result<Self, Error> {
        u64::from(pieces).try_into()
    }
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // An unreadable number is refused like 0: the message is the same.
        text.parse::<u64>().unwrap_or(0).try_into()
    }
}

impl TryFrom<String> for Quantity {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(QuantityVisitor)
    }
}

struct QuantityVisitor;

impl de::Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 1 to 1000000")
    }

    fn visit_u64<E: de::Error>(self, pieces: u64) -> Result<Quantity, E> {
        pieces.try_into().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, pieces: i64) -> Result<Quantity, E> {
        u64::try_from(pieces).unwrap_or(0).try_into().map_err(E::custom)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": Quantity::MAX })
    }
}

/// Free labels of an order, such as `store_id`: at most [`Attributes::ENTRIES_MAX`], in the order of their keys.
///
/// A key is 1 to 40 characters of `A-Z a-z 0-9 _ - .`, a value at most 500 characters without control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// The largest number of entries.
    pub const ENTRIES_MAX: usize = 20;
    const KEY_CHARS_MAX: usize = 40;
    const VALUE_CHARS_MAX: usize = 500;

    /// The value under this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there are none; such are left out where they are written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Attributes {
    type Error = Error;

    fn try_from(entries: BTreeMap<String, String>) -> Result<Self, Error> {
        if entries.len() > Attributes::ENTRIES_MAX {
            return Err(Error::TooManyAttributes(entries.len()));
        }
        for (key, value) in &entries {
            if !is_token(key, Attributes::KEY_CHARS_MAX, "_-.") {
                return Err(Error::AttributeKey(key.chars().take(Attributes::KEY_CHARS_MAX).collect()));
            }
            if !is_plain(value, Attributes::VALUE_CHARS_MAX) {
                return Err(Error::AttributeValue(key.clone()));
            }
        }
        Ok(Attributes(entries))
    }
}

impl JsonSchema for Attributes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Attributes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": Attributes::ENTRIES_MAX,
            "propertyNames": { "pattern": "^[A-Za-z0-9_.-]{1,40}$" },
            "additionalProperties": { "type": "string", "pattern": r"^[^\u0000-\u001f\u007f-\u009f]{0,500}$" },
        })
    }
}

/// Minor units as the decimal text that clients read: 255 in USD is `2.55`, 5 in JPY is `5`.
pub fn format_minor(minor: i64, currency: Currency) -> String {
    let digits = currency.minor_digits();
    let sign = if minor < 0 { "-" } else { "" };
    let scale = 10_u64.pow(digits.into());
    let (whole, decimals) = (minor.unsigned_abs() / scale, minor.unsigned_abs() % scale);
    match digits {
        0 => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{decimals:0width$}", width = digits.into()),
    }
}

fn is_token(text: &str, bytes_max: usize, marks: &str) -> bool {
    (1..=bytes_max).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
}

fn is_plain(text: &str, chars_max: usize) -> bool {
    // Four bytes a character at most: a megabyte of text is refused without being counted.
    text.len() <= 4 * chars_max && text.chars().count() <= chars_max && !text.chars().any(char::is_control)
}

fn trimmed(text: String, chars_max: usize) -> Option<String> {
    let kept = text.trim();
    let valid = !kept.is_empty() && is_plain(kept, chars_max);
    match valid {
        true if kept.len() == text.len() => Some(text),
        true => Some(kept.to_owned()),
        false => None,
    }
}

fn is_amount(text: &str) -> bool {
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if !(1..=10).contains(&whole.len())
        || !(1..=3).contains(&decimals.len())
        || !all_digits(whole)
        || !all_digits(decimals)
    {
        return false;
    }
    let whole_units = whole.bytes().fold(0, |n, d| n * 10 + i64::from(d - b'0'));
    whole_units < Amount::WHOLE_MAX || (whole_units == Amount::WHOLE_MAX && decimals.bytes().all(|d| d == b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    fn refusal<T: DeserializeOwned + fmt::Debug>(json: &str) -> String {
        serde_json::from_str::<T>(json).unwrap_err().to_string()
    }

    #[test]
    fn ids_take_their_alphabet_and_length_only() {
        for good in ["a", "A-1_z", &"x".repeat(64)] {
            assert_eq!(good.parse::<OrderId>().unwrap().as_str(), good);
            assert_eq!(good.parse::<CustomerId>().unwrap().as_str(), good);
        }
        for bad in ["", " a", "a.b", "a/b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<OrderId>().is_err(), "{bad:?}");
        }
        assert_eq!("a.b".parse::<Sku>().unwrap().to_string(), "a.b");
        assert_eq!(
            "a b".parse::<Sku>().unwrap_err().to_string(),
            "sku must be 1 to 64 characters of A-Z a-z 0-9 _ - ."
        );
        assert!(refusal::<OrderId>("\"a b\"").starts_with("order_id must be 1 to 64 characters of A-Z a-z 0-9 _ -"));
    }

    #[test]
    fn texts_are_trimmed_and_counted_in_characters() {
        assert_eq!(" Whole milk ".parse::<Name>().unwrap().as_str(), "Whole milk");
        assert!("é".repeat(200).parse::<Name>().is_ok());
        for bad in ["", "  ", "a\nb", "a\u{85}b", &"é".repeat(201)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(101).parse::<Category>().is_err() && "x".repeat(501).parse::<Reason>().is_err());
    }

    #[test]
    fn amounts_are_exact_in_their_currency() {
        let minor = |text: &str, code| text.parse::<Amount>().unwrap().minor(currency(code));
        assert_eq!(minor("2.5", "USD"), Ok(250));
        assert_eq!(minor("2.55", "USD"), Ok(255));
        assert_eq!(minor("7", "JPY"), Ok(7));
        assert_eq!(minor("1.234", "KWD"), Ok(1234));
        assert_eq!(minor("1000000000.00", "USD"), Ok(100_000_000_000));
        let too_precise = minor("2.555", "USD").unwrap_err();
        assert_eq!(too_precise.to_string(), "an amount in USD must have at most 2 decimals, such as \"2.55\"");
        assert!(minor("7.0", "JPY").is_err());
    }

    #[test]
    fn amounts_of_another_form_are_refused() {
        for bad in
            ["", ".", "2.", ".5", "-1", "+1", "1e3", "1,5", "2.5555", "1000000000.01", "10000000000", " 1", "1_0", "٣"]
        {
            assert!(bad.parse::<Amount>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_json_number_as_an_amount_shows_the_right_form() {
        assert!(refusal::<Amount>("2.55").contains("write it in quotes, \"2.55\""));
        assert!(refusal::<Amount>("3").contains("write it in quotes, \"3\""));
        for other in ["-3", "1e30", "true", "null", "{}"] {
            assert!(refusal::<Amount>(other).contains("a decimal string in quotes such as \"2.55\""), "{other}");
        }
    }

    #[test]
    fn currencies_are_codes_that_something_is_sold_in() {
        assert_eq!(Currency::default().as_str(), "USD");
        assert_eq!(["USD", "JPY", "KWD"].map(|code| currency(code).minor_digits()), [2, 0, 3]);
        for bad in ["", "usd", "US", "XXX", "XAU", "CLF", "ZZZ"] {
            assert!(bad.parse::<Currency>().is_err(), "{bad:?}");
        }
        assert_eq!(serde_json::to_string(&currency("EUR")).unwrap(), "\"EUR\"");
    }

    #[test]
    fn quantities_have_both_limits() {
        assert_eq!(serde_json::from_str::<Quantity>("1000000").unwrap().get(), 1_000_000);
        for bad in ["0", "-1", "1000001", "1.5", "\"1\"", "99999999999999999999", "null"] {
            assert!(refusal::<Quantity>(bad).contains("a whole number from 1 to 1000000"), "{bad}");
        }
    }

    #[test]
    fn attributes_name_the_key_at_fault() {
        let attributes: Attributes = serde_json::from_str(r#"{"store_id":"s-1","note":""}"#).unwrap();
        assert_eq!(attributes.get("store_id"), Some("s-1"));
        assert_eq!(attributes.iter().collect::<Vec<_>>(), [("note", ""), ("store_id", "s-1")]);
        assert!(refusal::<Attributes>(r#"{"a b":"x"}"#).contains("\"a b\""));
        assert!(refusal::<Attributes>(r#"{"note":"\n"}"#).contains("attribute note"));
        let crowd: BTreeMap<_, _> = (0..21).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(Attributes::try_from(crowd), Err(Error::TooManyAttributes(21)));
    }

    #[test]
    fn minor_units_are_written_with_the_currencys_digits() {
        assert_eq!(format_minor(255, currency("USD")), "2.55");
        assert_eq!(format_minor(5, currency("JPY")), "5");
        assert_eq!(format_minor(5, currency("KWD")), "0.005");
        assert_eq!(format_minor(-5, currency("USD")), "-0.05");
        assert_eq!(format_minor(i64::MIN, currency("USD")), "-92233720368547758.08");
    }

    proptest! {
        #[test]
        fn an_amount_survives_the_round_trip(
            minor in 0..=100_000_000_000_i64,
            code in prop::sample::select(vec!["USD", "EUR", "KWD"]),
        ) {
            let text = format_minor(minor, currency(code));
            let amount: Amount = text.parse().unwrap();
            prop_assert_eq!(amount.as_str(), &text);
            prop_assert_eq!(amount.minor(currency(code)), Ok(minor));
            let json = serde_json::to_string(&amount).unwrap();
            prop_assert_eq!(serde_json::from_str::<Amount>(&json).unwrap(), amount);
        }

        #[test]
        fn an_accepted_amount_is_exact_or_too_precise(
            text in "[0-9]{1,11}(\\.[0-9]{1,4})?",
            code in prop::sample::select(vec!["USD", "JPY", "KWD"]),
        ) {
            let Ok(amount) = text.parse::<Amount>() else { return Ok(()) };
            let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            match amount.minor(currency(code)) {
                Ok(minor) => {
                    let back: Amount = format_minor(minor, currency(code)).parse().unwrap();
                    prop_assert_eq!(back.minor(currency(code)), Ok(minor));
                }
                Err(_) => prop_assert!(decimals > usize::from(currency(code).minor_digits())),
            }
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC*|[0-9.eE+-]{0,14}") {
            let _ = (text.parse::<Amount>(), text.parse::<Currency>(), text.parse::<Quantity>());
            let _ = (text.parse::<Sku>(), text.parse::<Name>(), text.parse::<OrderId>());
        }
    }
}
