//! What there is, and what is done to it.

use std::collections::{BTreeMap, HashMap};

use axum::http::Method;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    PROJECT, Seen, ZONES,
    answers::{self, Answer, not_found, refusal, url},
    body,
};

/// What is done to one request instead of answering it.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    Answer(Answer),
    /// It is done, and the answer does not come.
    LoseAnswer,
    /// Nothing is done and nothing is said.
    Silence,
}

#[derive(Debug)]
struct Machine {
    body: Value,
    number: u64,
    /// How often it was looked at since its insert was done.
    looks: u32,
    /// How often it was not in a list.
    lists: u32,
    done: bool,
    stopped: bool,
    /// Looks since it was deleted.
    deleted: Option<u32>,
}

#[derive(Debug)]
struct Operation {
    kind: &'static str,
    target: String,
    /// Looks until it is done.
    takes: u32,
    failed: Option<Value>,
}

type Key = (String, String);

#[derive(Default)]
pub(crate) struct World {
    pub(crate) seen: Vec<Seen>,
    /// What the next operations of inserts come to: the fields that they are done with.
    pub(crate) inserts_fail: Vec<Value>,
    /// How often an operation is looked at before it is done; 0 is once.
    pub(crate) operations_take: u32,
    /// Whether host keys are on the console, or in the guest attributes.
    pub(crate) keys_on_console: bool,
    /// Seconds in the `Retry-After` of what is answered instead.
    pub(crate) retry_after: Option<u32>,
    /// Zones that an aggregated list does not reach.
    pub(crate) unreachable: Vec<String>,
    troubles: Vec<(Method, &'static str, Trouble)>,
    machines: BTreeMap<Key, Machine>,
    operations: HashMap<Key, Operation>,
    by_request_id: HashMap<String, Key>,
    number: u64,
}

/// Rows of a page, whatever is asked for.
const PAGE: usize = 2;
/// What is written to a console by a machine whose key this is: made for this test with ssh-keygen.
pub(crate) const HOST_KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIFGxujp/MJzK242H0L4Pvstie19aN2TISp/scaCA7tYL";
pub(crate) const FINGERPRINT: &str = "SHA256:gmcu4eWyQaAWQ9mTk42gxmiuohbCZEjXZWzL98l1X/M";

impl World {
    /// What the next request of this method, whose path has this in it, meets.
    pub(crate) fn trouble(&mut self, method: Method, path: &'static str, trouble: Trouble) {
        self.troubles.push((method, path, trouble));
    }

    pub(super) fn trouble_for(&mut self, method: &Method, path: &str) -> Option<Trouble> {
        let found = self.troubles.iter().position(|(of, part, _)| of == method && path.contains(part))?;
        Some(self.troubles.remove(found).2)
    }

    /// Names of what is there and was not deleted.
    pub(crate) fn alive(&self) -> Vec<String> {
        let alive = self.machines.iter().filter(|(_, machine)| machine.deleted.is_none());
        alive.map(|((zone, name), _)| format!("{zone}/{name}")).collect()
    }

    /// It shut itself down.
    pub(crate) fn stop(&mut self, zone: &str, name: &str) {
        self.machines.get_mut(&(zone.to_owned(), name.to_owned())).expect("a machine").stopped = true;
    }

    /// Somebody deleted it at Google.
    pub(crate) fn delete_elsewhere(&mut self, zone: &str, name: &str) {
        self.machines.remove(&(zone.to_owned(), name.to_owned()));
    }

    pub(super) fn insert(&mut self, project: &str, zone: &str, request_id: Option<&String>, body: &Value) -> Answer {
        if project != PROJECT {
            return refusal(404, "notFound", &format!("The resource 'projects/{project}' was not found"));
        }
        if !ZONES.contains(&zone) {
            return refusal(400, "invalid", &format!("Invalid value for field 'zone': '{zone}'. Unknown zone."));
        }
        if let Some(known) = request_id.and_then(|id| self.by_request_id.get(id)).cloned() {
            return self.operation(&known.0, &known.1);
        }
        if let Some(refused) = body::against(zone, body) {
            return refused;
        }
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        let key = (zone.to_owned(), name.clone());
        if self.machines.contains_key(&key) {
            let path = format!("projects/{PROJECT}/zones/{zone}/instances/{name}");
            return refusal(409, "alreadyExists", &format!("The resource '{path}' already exists"));
        }
        self.number += 1;
        let machine = Machine {
            body: body.clone(),
            number: self.number,
            looks: 0,
            lists: 0,
            done: false,
            stopped: false,
            deleted: None,
        };
        self.machines.insert(key, machine);
        let failed = (!self.inserts_fail.is_empty()).then(|| self.inserts_fail.remove(0));
        self.begin("insert", zone, name, self.operations_take, failed, request_id)
    }

    fn begin(
        &mut self,
        kind: &'static str,
        zone: &str,
        target: String,
        takes: u32,
        failed: Option<Value>,
        request_id: Option<&String>,
    ) -> Answer {
        let key = (zone.to_owned(), format!("operation-1764531742006-{}", self.operations.len() + 1));
        let answer = answers::operation(zone, &key.1, kind, &target, "RUNNING", None);
        if let Some(id) = request_id {
            self.by_request_id.insert(id.clone(), key.clone());
        }
        self.operations.insert(key, Operation { kind, target, takes, failed });
        answer
    }

    pub(super) fn operation(&mut self, zone: &str, name: &str) -> Answer {
        let Some(operation) = self.operations.get_mut(&(zone.to_owned(), name.to_owned())) else {
            return not_found(&format!("zones/{zone}/operations/{name}"));
        };
        let (kind, target) = (operation.kind, operation.target.clone());
        if operation.takes > 0 {
            operation.takes -= 1;
            return answers::operation(zone, name, kind, &target, "RUNNING", None);
        }
        let machine = (zone.to_owned(), target.clone());
        if operation.failed.is_some() {
            // What could not be made is taken away again.
            self.machines.remove(&machine);
        } else if let Some(machine) = self.machines.get_mut(&machine).filter(|_| kind == "insert") {
            machine.done = true;
        }
        answers::operation(zone, name, kind, &target, "DONE", operation.failed.as_ref())
    }

    pub(super) fn get(&mut self, zone: &str, name: &str) -> Answer {
        let key = (zone.to_owned(), name.to_owned());
        match self.machines.get_mut(&key).map(|machine| machine.look(zone)) {
            Some(Some(instance)) => Answer(200, instance),
            Some(None) => {
                self.machines.remove(&key);
                not_found(&format!("zones/{zone}/instances/{name}"))
            }
            None => not_found(&format!("zones/{zone}/instances/{name}")),
        }
    }

    pub(super) fn delete(&mut self, zone: &str, name: &str) -> Answer {
        let Some(machine) = self.machines.get_mut(&(zone.to_owned(), name.to_owned())) else {
            return not_found(&format!("zones/{zone}/instances/{name}"));
        };
        if machine.deleted.is_some() {
            let message = format!("The resource 'projects/{PROJECT}/zones/{zone}/instances/{name}' is not ready");
            return refusal(400, "resourceNotReady", &message);
        }
        machine.deleted = Some(0);
        self.begin("delete", zone, name.to_owned(), 0, None, None)
    }

    pub(super) fn serial_port(&mut self, zone: &str, name: &str, port: &str) -> Answer {
        let Some(machine) = self.machines.get(&(zone.to_owned(), name.to_owned())) else {
            return not_found(&format!("zones/{zone}/instances/{name}"));
        };
        let mut contents = "[    0.000000] Linux version 6.1.0-41-cloud-amd64\r\n".to_owned();
        if self.keys_on_console && machine.is_up() {
            contents += &format!(
                "<14>Nov 30 11:42:40 cloud-init: -----BEGIN SSH HOST KEY KEYS-----\r\nssh-ed25519 {HOST_KEY} root@{name}\r\n\
                 <14>Nov 30 11:42:40 cloud-init: -----END SSH HOST KEY KEYS-----\r\n"
            );
        }
        let contents = if port == "1" { contents } else { String::new() };
        let next = contents.len().to_string();
        let link = url(&format!("zones/{zone}/instances/{name}/serialPort"));
        Answer(
            200,
            json!({ "kind": "compute#serialPortOutput", "selfLink": link, "contents": contents, "start": "0", "next": next }),
        )
    }

    pub(super) fn guest_attributes(&mut self, zone: &str, name: &str, query_path: &str) -> Answer {
        let path = format!("zones/{zone}/instances/{name}");
        let Some(machine) = self.machines.get(&(zone.to_owned(), name.to_owned())) else { return not_found(&path) };
        if query_path != "hostkeys/" {
            return refusal(400, "invalid", &format!("Invalid value for field 'queryPath': '{query_path}'."));
        }
        if self.keys_on_console || !machine.is_up() {
            return not_found(&format!("{path}/guestAttributes/{query_path}"));
        }
        let item = json!({ "namespace": "hostkeys", "key": "ssh-ed25519", "value": HOST_KEY });
        let link = url(&format!("{path}/guestAttributes/{query_path}"));
        Answer(
            200,
            json!({
                "kind": "compute#guestAttributes", "queryPath": query_path, "queryValue": { "items": [item] }, "selfLink": link,
            }),
        )
    }

    pub(super) fn aggregated(&mut self, query: &HashMap<String, String>) -> Answer {
        let filter = query.get("filter").map_or("", String::as_str);
        // AIP-160, as far as we use it: one label, equal to a quoted value.
        let parsed = filter.strip_prefix("labels.").and_then(|rest| rest.split_once(" = \""));
        let Some((label, value)) = parsed.and_then(|(label, value)| Some((label, value.strip_suffix('"')?))) else {
            return refusal(
                400,
                "invalid",
                &format!("Invalid value for field 'filter': '{filter}'. Invalid list filter expression."),
            );
        };
        let after = query
            .get("pageToken")
            .filter(|token| !token.is_empty())
            .map(|token| String::from_utf8(BASE64_STANDARD.decode(token).expect("ours")).expect("ours"));
        let (mut rows, mut gone): (Vec<(Key, Value)>, Vec<Key>) = Default::default();
        for (key, machine) in &mut self.machines {
            // A list is late: what is new is not in the first one.
            let (is_new, is_first_page) = (machine.lists == 0, after.is_none());
            machine.lists += u32::from(is_first_page);
            if is_new || machine.body["labels"][label] != value {
                continue;
            }
            match if is_first_page { machine.look(&key.0) } else { machine.as_json(&key.0) } {
                Some(instance) => rows.push((key.clone(), instance)),
                None => gone.push(key.clone()),
            }
        }
        gone.iter().for_each(|key| _ = self.machines.remove(key));
        let place = |(zone, name): &Key| format!("{zone}/{name}");
        rows.retain(|(key, _)| after.as_ref().is_none_or(|after| place(key) > *after));
        let most = query.get("maxResults").and_then(|most| most.parse().ok()).unwrap_or(PAGE).min(PAGE);
        let more = rows.len() > most;
        rows.truncate(most);
        let mut items: BTreeMap<String, Value> = BTreeMap::new();
        for zone in ZONES {
            let of_zone = |(key, _): &&(Key, Value)| key.0 == zone;
            let instances: Vec<Value> = rows.iter().filter(of_zone).map(|(_, instance)| instance.clone()).collect();
            let scope = format!("zones/{zone}");
            let warning = |code: &str, message: String| json!({ "warning": { "code": code, "message": message, "data": [{ "key": "scope", "value": scope }] } });
            let item = if self.unreachable.iter().any(|down| down == zone) {
                warning("UNREACHABLE", format!("{scope} could not be reached."))
            } else if instances.is_empty() {
                warning("NO_RESULTS_ON_PAGE", format!("There are no results for scope '{scope}' on this page."))
            } else {
                json!({ "instances": instances })
            };
            items.insert(scope.clone(), item);
        }
        let mut list = json!({
            "kind": "compute#instanceAggregatedList", "id": format!("projects/{PROJECT}/aggregated/instances"), "items": items,
            "selfLink": url("aggregated/instances"),
        });
        if let Some((last, _)) = rows.last().filter(|_| more) {
            list["nextPageToken"] = BASE64_STANDARD.encode(place(last)).into();
        }
        Answer(200, list)
    }
}

impl Machine {
    fn is_up(&self) -> bool {
        self.done && self.looks >= 4
    }

    /// Each look is a step on its way.
    fn look(&mut self, zone: &str) -> Option<Value> {
        match &mut self.deleted {
            Some(looks) => *looks += 1,
            None => self.looks += u32::from(self.done),
        }
        self.as_json(zone)
    }

    /// `None` once it is gone.
    fn as_json(&self, zone: &str) -> Option<Value> {
        let status = match (self.deleted, self.done, self.looks) {
            (Some(looks), ..) if looks > 2 => return None,
            (Some(_), ..) => "STOPPING",
            (None, ..) if self.stopped => "TERMINATED",
            (None, false, _) => "PROVISIONING",
            (None, true, _) if !self.is_up() => "STAGING",
            (None, true, _) => "RUNNING",
        };
        let name = self.body["name"].as_str().unwrap_or_default();
        let mut instance = self.body.clone();
        let scheduling =
            json!({ "onHostMaintenance": "MIGRATE", "automaticRestart": true, "provisioningModel": "STANDARD" });
        let spot = self.body["scheduling"]["provisioningModel"] == "SPOT";
        for (key, value) in [
            ("kind", "compute#instance".into()),
            ("id", (4_170_000_000_000_000_000 + self.number).to_string().into()),
            ("creationTimestamp", "2026-11-30T11:42:22.006-08:00".into()),
            ("status", status.into()),
            ("zone", url(&format!("zones/{zone}")).into()),
            ("machineType", url(self.body["machineType"].as_str().unwrap_or_default()).into()),
            ("labelFingerprint", "42WmSpB8rSM=".into()),
            ("selfLink", url(&format!("zones/{zone}/instances/{name}")).into()),
            ("scheduling", if spot { self.body["scheduling"].clone() } else { scheduling }),
            (
                "disks",
                json!([{ "kind": "compute#attachedDisk", "type": "PERSISTENT", "mode": "READ_WRITE", "boot": true }]),
            ),
        ] {
            instance[key] = value;
        }
        let interface = &mut instance["networkInterfaces"][0];
        interface["networkIP"] = format!("10.156.0.{}", self.number + 1).into();
        interface["name"] = "nic0".into();
        if self.is_up() && !interface["accessConfigs"].is_null() {
            interface["accessConfigs"][0]["natIP"] = format!("203.0.113.{}", self.number + 1).into();
        }
        Some(instance)
    }
}
