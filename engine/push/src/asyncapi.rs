//! `/asyncapi.json`: describes sockets, streams and polls as an AsyncAPI 3 document, generated from the list of
//! channels.

use axum::Json;
use axum::extract::State;
use axum::routing::get;
use kernel::id;
use serde_json::{Map, Value, json};
use utoipa_axum::router::OpenApiRouter;

use crate::api::{Channel, QueryApi};
use crate::publisher::AnyPublisher;

/// Returns the route of the AsyncAPI document.
pub fn router() -> OpenApiRouter<QueryApi> {
    let answer = async |State(api): State<QueryApi>| Json(document(api.channels.iter(), &api.publishers));
    OpenApiRouter::new().route("/asyncapi.json", get(answer))
}

/// Builds the document of some channels and their publishers.
pub fn document<'a>(
    channels: impl IntoIterator<Item = &'a Channel>,
    publishers: &[&'static dyn AnyPublisher],
) -> Value {
    let mut own = Map::new();
    let mut operations = Map::new();
    for channel in channels {
        let name = channel.name.trim_end_matches(':').replace(':', "_");
        let mut described = json!({
            "address": channel.address("{id}"),
            "title": channel.shows,
            "description": format!("Who may subscribe: {}.", channel.who),
            "messages": messages(&["snapshot", "publication"]),
        });
        if channel.is_id.is_some() {
            described["parameters"] =
                json!({"id": {"description": format!("1 to {} characters {}", id::CHARS_MAX, id::RULE)}});
        }
        if channel.has_presence {
            described["messages"] = messages(&["snapshot", "publication", "join", "leave"]);
        }
        if channel.missed.is_none() {
            described["messages"] = messages(&["snapshot", "ephemeral"]);
        }
        operations.insert(
            format!("follow_{name}"),
            json!({
                "action": "send",
                "channel": {"$ref": format!("#/channels/{name}")},
                "summary": channel.shows,
            }),
        );
        own.insert(name, described);
    }
    own.insert(
        "socket".to_owned(),
        json!({
            "address": "/ws",
            "title": "The Centrifuge client protocol, version 2, in JSON",
            "description": "Frames contain JSON objects separated by line feeds. `/ws/admin` has the same messages, for admins only.",
            "messages": messages(&["command", "reply", "push", "ping"]),
            "bindings": {"ws": {"method": "GET"}},
        }),
    );
    own.insert(
        "stream".to_owned(),
        json!({
            "address": "/v1/live",
            "title": "Server-sent events",
            "description": "`GET /v1/live?channel=…&channel=…` streams events; the header `Last-Event-ID` resumes. `/v1/poll` returns the same events by long polls.",
            "messages": messages(&["event"]),
            "bindings": {"http": {}},
        }),
    );
    own.insert(
        "poll".to_owned(),
        json!({
            "address": "/v1/poll",
            "title": "Long polls",
            "description": "`GET /v1/poll?channel=…&channel=…&cursor=…&wait=25` returns the events after the cursor, or waits for the next one.",
            "messages": messages(&["polled"]),
            "bindings": {"http": {}},
        }),
    );
    let on = |name: &str| json!({"$ref": format!("#/channels/{name}")});
    let of_socket = |names: &[&str]| {
        let reference = |name: &&str| json!({"$ref": format!("#/channels/socket/messages/{name}")});
        names.iter().map(reference).collect::<Vec<_>>()
    };
    operations.insert(
        "command".to_owned(),
        json!({"action": "receive", "channel": on("socket"), "summary": "Commands and pongs of clients",
            "messages": of_socket(&["command", "ping"])}),
    );
    operations.insert(
        "answer".to_owned(),
        json!({"action": "send", "channel": on("socket"), "summary": "Replies, pushes and pings",
            "messages": of_socket(&["reply", "push", "ping"])}),
    );
    operations.insert(
        "stream".to_owned(),
        json!({"action": "send", "channel": on("stream"), "summary": "Server-sent events"}),
    );
    operations
        .insert("poll".to_owned(), json!({"action": "send", "channel": on("poll"), "summary": "Responses to polls"}));
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Docket live updates",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Delivers every change exactly once, by ascending position, over WebSocket, server-sent events or long polls.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": own,
        "operations": operations,
        "components": {"messages": definitions(publishers)},
    })
}

/// Adds the members of another object.
fn merge(object: &mut Value, other: Value) {
    if let (Some(object), Value::Object(other)) = (object.as_object_mut(), other) {
        object.extend(other);
    }
}

fn messages(names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), json!({"$ref": format!("#/components/messages/{name}")}))).collect()
}

fn definitions(publishers: &[&'static dyn AnyPublisher]) -> Value {
    let object = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required});
    let text = || json!({"type": "string"});
    let number = || json!({"type": "integer"});
    let message = |summary: &str, payload: Value| json!({"summary": summary, "payload": payload});
    let channel = || object(json!({"channel": text()}), &["channel"]);
    let mut properties = json!({"type": {"type": "string", "description": "name of the event, as in schemas/events"}});
    let mut required = vec!["type"];
    for publisher in publishers {
        let description = format!("id of the changed `{}`", publisher.aggregate_type());
        properties[publisher.id_member()] = json!({"type": "string", "description": description});
    }
    if let [only] = publishers {
        required.push(only.id_member());
    }
    required.extend(["version", "position", "occurred_at", "payload"]);
    merge(
        &mut properties,
        json!({
            "version": number(),
            "position": number(),
            "occurred_at": {"type": "string", "format": "date-time"},
            "payload": {"type": "object"},
            "view": {"type": "object", "description": "the aggregate after the event, as queries return it"},
            "patch": {"type": "object", "description": "in place of view, if the subscriber requested patches: a merge patch (RFC 7396)"},
        }),
    );
    let change = object(properties, &required);
    let publication = object(
        json!({
            "data": change,
            "offset": {"type": "integer", "description": "position in the log"},
            "tags": object(json!({"prev": {"type": "string", "description": "position of the previous change on the channel"}}), &["prev"]),
        }),
        &["data", "offset", "tags"],
    );
    let who = object(json!({"client": text(), "user": text()}), &["user"]);
    let standing = object(json!({"items": {"type": "array"}}), &["items"]);
    let event = object(
        json!({
            "event": {"enum": ["snapshot", "pub", "join", "leave", "reset"]},
            "channel": text(), "offset": number(), "prev": number(),
            "data": {"description": "the snapshot or the change; for reset, the channels whose snapshots follow, and the epoch"},
        }),
        &["event", "data"],
    );
    json!({
        "snapshot": message("The current state, and its position", object(
            json!({"type": {"const": "snapshot"}, "view": {}, "items": {"type": "array"}, "position": number()}),
            &["type", "position"],
        )),
        "publication": message("A change", publication.clone()),
        "join": message("A user has subscribed with a first client", object(json!({"info": who}), &["info"])),
        "leave": message("A user has no subscribed client any more", object(json!({"info": who}), &["info"])),
        "ephemeral": message("An ephemeral event, which is not in the log", standing.clone()),
        "command": message("A command; its reply has the same id", object(
            json!({
                "id": number(),
                "connect": object(json!({"token": text()}), &[]),
                "subscribe": object(json!({
                    "channel": text(), "recover": {"type": "boolean"}, "offset": number(), "epoch": text(),
                    "data": object(json!({"delta": {"const": "merge-patch"}}), &[]),
                }), &["channel"]),
                "unsubscribe": channel(), "presence": channel(), "presence_stats": channel(),
                "refresh": object(json!({"token": text()}), &["token"]),
                "ping": object(json!({}), &[]),
                "publish": object(json!({}), &[]), "rpc": object(json!({}), &[]), "history": object(json!({}), &[]),
            }),
            &["id"],
        )),
        "reply": message("The reply to a command", object(
            json!({
                "id": number(),
                "error": object(json!({"code": number(), "message": text(), "temporary": {"type": "boolean"}}), &["code", "message"]),
                "connect": object(json!({"client": text(), "version": text(), "expires": {"type": "boolean"},
                    "ttl": number(), "ping": number(), "pong": {"type": "boolean"}}), &["client"]),
                "subscribe": object(json!({
                    "recoverable": {"const": true, "description": "absent, with positioned, epoch and offset, for a channel that is not in the log"},
                    "positioned": {"const": true}, "epoch": text(), "offset": number(),
                    "was_recovering": {"type": "boolean"}, "recovered": {"type": "boolean"},
                    "publications": {"type": "array", "items": publication},
                    "data": {"anyOf": [{"$ref": "#/components/messages/snapshot/payload"}, standing]},
                }), &["was_recovering", "recovered"]),
                "unsubscribe": object(json!({}), &[]),
                "presence": object(json!({"presence": {"type": "object", "additionalProperties": who}}), &["presence"]),
                "presence_stats": object(json!({"num_clients": number(), "num_users": number()}), &["num_clients", "num_users"]),
                "refresh": object(json!({"client": text(), "expires": {"type": "boolean"}, "ttl": number()}), &["client", "ttl"]),
                "ping": object(json!({}), &[]),
            }),
            &["id"],
        )),
        "push": message("An event on a channel", object(
            json!({"push": object(json!({
                "channel": text(),
                "pub": {"anyOf": [publication, object(json!({"data": standing}), &["data"])]},
                "join": object(json!({"info": who}), &["info"]),
                "leave": object(json!({"info": who}), &["info"]),
                "unsubscribe": object(json!({"code": number(), "reason": text()}), &["code"]),
            }), &["channel"])}),
            &["push"],
        )),
        "ping": message("An empty object; the client answers with an empty object", object(json!({}), &[])),
        "event": message("The data of a server-sent event; for `auth_expired`, the reason", json!({
            "anyOf": [event, object(json!({"reason": {"enum": ["expired", "revoked", "banned"]}}), &["reason"])],
        })),
        "polled": message("The events, and the cursor for the next poll", object(
            json!({"cursor": text(), "events": {"type": "array", "items": event}}),
            &["cursor", "events"],
        )),
    })
}
