//! Stored responses: bounded in number and bytes, shared fairly by tenants, and never shown to another tenant.
//!
//! A response enters when its request begins, so that what waits counts too and what is erased meanwhile stays erased; it is found from
//! its end on. Texts are held as JSON: that is what they take. When room runs out, the tenant that holds most gives up its least recently
//! used response, so that none that holds less than an equal share loses anything to another one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::Erase;
use protocol::{InputItem, ResponseObject};
use serde::Serialize;
use tokens::{SessionId, TenantId, UseOrder};

/// Responses of all tenants.
pub(crate) struct ResponseStore {
    max_responses: usize,
    max_bytes: usize,
    /// Locked for a look-up or a change, never across an `await`.
    kept: Mutex<Kept>,
}

/// Tenant and session of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseOwner {
    pub(crate) tenant: TenantId,
    pub(crate) session: Option<SessionId>,
}

/// A stored request with its response, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// List of the request's items.
    pub(crate) input: Arc<str>,
    /// The response object.
    pub(crate) response: Arc<str>,
}

/// Place of a response whose request runs. Gives the place back when it is dropped before the end.
pub(crate) struct Pending {
    store: Arc<ResponseStore>,
    id: String,
}

#[derive(Default)]
struct Kept {
    /// Entries by id.
    entries: BTreeMap<String, Entry>,
    /// Ids by number of creation.
    ids: BTreeMap<u64, String>,
    /// Latest entry that holds the item of this id.
    items: BTreeMap<(TenantId, String), u64>,
    tenants: BTreeMap<TenantId, Held>,
    num_bytes: usize,
    num_created: u64,
    num_uses: u64,
}

struct Entry {
    number: u64,
    owner: ResponseOwner,
    previous: Option<String>,
    input: Arc<str>,
    /// `None` until the end.
    response: Option<Arc<str>>,
    item_ids: Vec<String>,
    num_bytes: usize,
    last_use: u64,
}

/// Entries of one tenant.
#[derive(Default)]
struct Held {
    /// Never empty.
    order: UseOrder<u64, u64>,
    num_bytes: usize,
}

/// Bytes that an entry takes besides its texts, at most.
const ENTRY_BYTES: usize = 512;

impl ResponseStore {
    /// Creates a store of at most `max_responses` responses of `max_bytes` bytes together. Zero keeps nothing.
    pub(crate) fn new(max_responses: usize, max_bytes: usize) -> Self {
        Self { max_responses, max_bytes, kept: Mutex::default() }
    }

    /// Reserves a place for the response `id` to `input`, which continues the response `previous`.
    pub(crate) fn begin(
        self: &Arc<Self>,
        id: &str,
        owner: ResponseOwner,
        previous: Option<&str>,
        input: &[InputItem],
    ) -> Pending {
        let item_ids: Vec<_> = input.iter().filter_map(|item| item.id.clone()).collect();
        let input: Arc<str> = to_json(&input).into();
        let mut kept = self.lock();
        kept.num_created += 1;
        let (number, previous) = (kept.num_created, previous.map(str::to_owned));
        let num_bytes = ENTRY_BYTES + input.len() + bytes_of_ids(&item_ids);
        let entry = Entry { number, owner, previous, input, response: None, item_ids, num_bytes, last_use: 0 };
        kept.insert(id.to_owned(), entry);
        self.make_room(&mut kept, owner.tenant);
        Pending { store: Arc::clone(self), id: id.to_owned() }
    }

    /// Returns a response of `tenant`, which counts as a use.
    pub(crate) fn get(&self, tenant: TenantId, id: &str) -> Option<Turn> {
        let mut kept = self.lock();
        let turn = kept.turn(tenant, id)?;
        kept.touch(id);
        Some(turn)
    }

    /// Deletes a response of `tenant`. Returns false if it does not exist.
    pub(crate) fn delete(&self, tenant: TenantId, id: &str) -> bool {
        let mut kept = self.lock();
        kept.turn(tenant, id).is_some() && kept.remove(id)
    }

    /// Returns the conversation that ends with the response `id` of `tenant`, oldest turn first, which counts as a use of all its turns.
    ///
    /// # Errors
    /// Names the response that is missing.
    pub(crate) fn conversation(&self, tenant: TenantId, id: &str) -> Result<Vec<Turn>, String> {
        let mut kept = self.lock();
        let (mut turns, mut ids, mut next) = (Vec::new(), Vec::new(), Some(id.to_owned()));
        while let Some(id) = next {
            turns.push(kept.turn(tenant, &id).ok_or_else(|| id.clone())?);
            next = kept.entries.get(&id).and_then(|entry| entry.previous.clone());
            ids.push(id);
        }
        turns.reverse();
        ids.iter().for_each(|id| kept.touch(id));
        Ok(turns)
    }

    /// Returns the turn of `tenant` that holds the item `id`.
    pub(crate) fn turn_of_item(&self, tenant: TenantId, id: &str) -> Option<Turn> {
        let kept = self.lock();
        let number = kept.items.get(&(tenant, id.to_owned()))?;
        kept.turn(tenant, kept.ids.get(number)?)
    }

    /// Erases the responses of a tenant, of a session, or all. A donor of KV has none.
    pub(crate) fn erase(&self, what: Erase) {
        let is_erased = |owner: ResponseOwner| match what {
            Erase::Donor(_) => false,
            Erase::Session(tenant, session) => owner == ResponseOwner { tenant, session: Some(session) },
            Erase::Tenant(tenant) => owner.tenant == tenant,
            Erase::All => true,
        };
        let mut kept = self.lock();
        let ids: Vec<_> = kept.entries.iter().filter(|(_, entry)| is_erased(entry.owner)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            kept.remove(&id);
        }
    }

    /// Evicts until the limits are kept, after an addition of `newcomer`.
    fn make_room(&self, kept: &mut Kept, newcomer: TenantId) {
        loop {
            let are_too_many = kept.entries.len() > self.max_responses;
            if !are_too_many && kept.num_bytes <= self.max_bytes {
                return;
            }
            let load = |held: &Held| if are_too_many { held.order.len() } else { held.num_bytes };
            // Among equals the newcomer gives way.
            let most = kept.tenants.iter().max_by_key(|(tenant, held)| (load(held), **tenant == newcomer));
            let Some((number, _)) = most.and_then(|(_, held)| held.order.oldest()) else { return };
            let id = kept.ids[&number].clone();
            kept.remove(&id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Returns the turn of `tenant` that ended with the response `id`.
    fn turn(&self, tenant: TenantId, id: &str) -> Option<Turn> {
        let entry = self.entries.get(id).filter(|entry| entry.owner.tenant == tenant)?;
        Some(Turn { input: Arc::clone(&entry.input), response: Arc::clone(entry.response.as_ref()?) })
    }

    /// Inserts `entry` as the most recently used one.
    fn insert(&mut self, id: String, mut entry: Entry) {
        self.num_uses += 1;
        entry.last_use = self.num_uses;
        self.num_bytes += entry.num_bytes;
        let held = self.tenants.entry(entry.owner.tenant).or_default();
        held.num_bytes += entry.num_bytes;
        held.order.insert(entry.number, entry.last_use);
        self.ids.insert(entry.number, id.clone());
        for item in &entry.item_ids {
            self.items.insert((entry.owner.tenant, item.clone()), entry.number);
        }
        self.entries.insert(id, entry);
    }

    /// Removes the entry `id` with all that refers to it. Returns false if it does not exist.
    fn remove(&mut self, id: &str) -> bool {
        self.take(id).is_some()
    }

    fn take(&mut self, id: &str) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        let tenant = entry.owner.tenant;
        self.num_bytes -= entry.num_bytes;
        self.ids.remove(&entry.number);
        for item in &entry.item_ids {
            let key = (tenant, item.clone());
            if self.items.get(&key) == Some(&entry.number) {
                self.items.remove(&key);
            }
        }
        let held = self.tenants.get_mut(&tenant).expect("an entry's tenant is known");
        held.num_bytes -= entry.num_bytes;
        assert!(held.order.remove(entry.number, entry.last_use), "an entry is where it was put");
        if held.order.is_empty() {
            self.tenants.remove(&tenant);
        }
        Some(entry)
    }

    /// Makes the entry `id` the most recently used one.
    fn touch(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        self.num_uses += 1;
        let held = self.tenants.get_mut(&entry.owner.tenant).expect("an entry's tenant is known");
        assert!(held.order.remove(entry.number, entry.last_use), "an entry is where it was put");
        entry.last_use = self.num_uses;
        held.order.insert(entry.number, entry.last_use);
    }
}

impl Pending {
    /// Stores the whole `response`, unless its place was erased or evicted meanwhile.
    pub(crate) fn keep(self, response: &ResponseObject) {
        let json: Arc<str> = to_json(response).into();
        let new_ids: Vec<_> = response.output.iter().map(|item| item.id().to_owned()).collect();
        let mut kept = self.store.lock();
        let Some(mut entry) = kept.take(&self.id) else { return };
        entry.num_bytes += json.len() + bytes_of_ids(&new_ids);
        entry.response = Some(json);
        entry.item_ids.extend(new_ids);
        let tenant = entry.owner.tenant;
        kept.insert(self.id.clone(), entry);
        self.store.make_room(&mut kept, tenant);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut kept = self.store.lock();
        if kept.entries.get(&self.id).is_some_and(|entry| entry.response.is_none()) {
            kept.remove(&self.id);
        }
    }
}

impl Turn {
    /// Returns the length of its texts.
    pub(crate) fn num_bytes(&self) -> usize {
        self.input.len() + self.response.len()
    }

    /// Returns the items of the request.
    pub(crate) fn input_items(&self) -> Vec<InputItem> {
        serde_json::from_str(&self.input).expect("it was written from items")
    }

    /// Returns the items of the request and those of the response.
    pub(crate) fn items(&self) -> Vec<InputItem> {
        #[derive(serde::Deserialize)]
        struct Output {
            output: Vec<InputItem>,
        }
        let Output { output } = serde_json::from_str(&self.response).expect("it was written from a response");
        [self.input_items(), output].concat()
    }
}

/// Bytes that the ids of items take, each in its entry and as a key.
fn bytes_of_ids(ids: &[String]) -> usize {
    ids.iter().map(|id| 2 * id.len() + 128).sum()
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("responses have string keys only")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::object::tests::object;
    use super::*;

    const A: ResponseOwner = ResponseOwner { tenant: TenantId(1), session: None };
    const B: ResponseOwner = ResponseOwner { tenant: TenantId(2), session: None };

    fn store(max_responses: usize, max_bytes: usize) -> Arc<ResponseStore> {
        Arc::new(ResponseStore::new(max_responses, max_bytes))
    }

    fn input(id: &str, text: &str) -> Vec<InputItem> {
        vec![serde_json::from_value(json!({"type": "message", "id": id, "role": "user", "content": text})).unwrap()]
    }

    /// Stores a response whose only item of input is called after it.
    fn keep(store: &Arc<ResponseStore>, owner: ResponseOwner, id: &str, previous: Option<&str>) {
        store.begin(id, owner, previous, &input(&format!("msg_{id}"), id)).keep(&object(id));
    }

    /// Returns the ids that are found, of `ids` and `owner`. Looks are no uses.
    fn found(store: &ResponseStore, owner: ResponseOwner, ids: &[&str]) -> Vec<String> {
        let is_found = |id: &&&str| store.lock().turn(owner.tenant, id).is_some();
        ids.iter().filter(is_found).map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn a_response_is_found_from_its_end_on_by_its_tenant_alone() {
        let store = store(8, 1 << 20);
        let pending = store.begin("r", A, None, &input("msg_r", "hi"));
        assert_eq!(store.get(A.tenant, "r"), None);
        let response = object("r");
        pending.keep(&response);
        let turn = store.get(A.tenant, "r").unwrap();
        assert_eq!(turn.input_items(), input("msg_r", "hi"));
        assert_eq!(serde_json::from_str::<ResponseObject>(&turn.response).unwrap(), response);
        assert_eq!(store.get(B.tenant, "r"), None);
        assert!(store.turn_of_item(A.tenant, "msg_r").is_some() && store.turn_of_item(B.tenant, "msg_r").is_none());
        assert!(!store.delete(B.tenant, "r") && store.delete(A.tenant, "r") && !store.delete(A.tenant, "r"));
        assert_eq!((store.turn_of_item(A.tenant, "msg_r"), store.lock().num_bytes), (None, 0));
    }

    #[test]
    fn an_answer_that_is_cut_off_leaves_nothing() {
        let store = store(8, 1 << 20);
        drop(store.begin("r", A, None, &input("msg_r", "hi")));
        let kept = store.lock();
        assert!(kept.entries.is_empty() && kept.items.is_empty() && kept.tenants.is_empty() && kept.ids.is_empty());
        assert_eq!(kept.num_bytes, 0);
    }

    #[test]
    fn a_conversation_needs_all_its_turns() {
        let store = store(8, 1 << 20);
        keep(&store, A, "r1", None);
        keep(&store, A, "r2", Some("r1"));
        keep(&store, A, "r3", Some("r2"));
        let turns = store.conversation(A.tenant, "r3").unwrap();
        let ids: Vec<_> = turns.iter().map(|turn| turn.input_items()[0].id.clone().unwrap()).collect();
        assert_eq!(ids, ["msg_r1", "msg_r2", "msg_r3"]);
        assert_eq!(turns[0].items().len(), 1 + object("r1").output.len());
        assert_eq!(store.conversation(B.tenant, "r3").err().as_deref(), Some("r3"));
        store.delete(A.tenant, "r1");
        assert_eq!(store.conversation(A.tenant, "r3").err().as_deref(), Some("r1"));
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let store = store(2, 1 << 20);
        keep(&store, A, "r1", None);
        keep(&store, A, "r2", None);
        assert!(store.get(A.tenant, "r1").is_some());
        keep(&store, A, "r3", None);
        assert_eq!(found(&store, A, &["r1", "r2", "r3"]), ["r1", "r3"]);
    }

    #[test]
    fn a_flood_of_one_tenant_leaves_the_share_of_another() {
        let store = store(4, 1 << 20);
        keep(&store, A, "a1", None);
        keep(&store, A, "a2", None);
        for id in ["b1", "b2", "b3", "b4", "b5"] {
            keep(&store, B, id, None);
        }
        assert_eq!(found(&store, A, &["a1", "a2"]), ["a1", "a2"]);
        assert_eq!(found(&store, B, &["b1", "b2", "b3", "b4", "b5"]), ["b4", "b5"]);
    }

    #[test]
    fn bytes_are_bounded_and_what_exceeds_them_alone_is_not_kept() {
        let store = store(100, 8 << 10);
        keep(&store, A, "r1", None);
        let long = store.begin("r2", B, None, &input("msg_r2", &"x".repeat(9000)));
        assert_eq!(found(&store, A, &["r1"]), ["r1"]);
        long.keep(&object("r2"));
        assert_eq!(store.get(B.tenant, "r2"), None);
        for number in 0..50 {
            keep(&store, A, &format!("s{number}"), None);
            assert!(store.lock().num_bytes <= 8 << 10);
        }
        let none = self::store(0, 1 << 20);
        keep(&none, A, "r1", None);
        assert_eq!(none.get(A.tenant, "r1"), None);
    }

    #[test]
    fn what_is_erased_stays_erased_although_its_answer_goes_on() {
        let session = ResponseOwner { session: Some(SessionId(7)), ..A };
        let store = store(8, 1 << 20);
        keep(&store, A, "r1", None);
        keep(&store, session, "r2", None);
        keep(&store, B, "r3", None);
        let runs = store.begin("r4", session, None, &input("msg_r4", "hi"));
        store.erase(Erase::Session(B.tenant, SessionId(7)));
        store.erase(Erase::Donor(tokens::DonorId(1)));
        assert_eq!(found(&store, A, &["r1", "r2"]), ["r1", "r2"]);
        store.erase(Erase::Session(A.tenant, SessionId(7)));
        runs.keep(&object("r4"));
        assert_eq!(found(&store, A, &["r1", "r2", "r4"]), ["r1"]);
        store.erase(Erase::Tenant(A.tenant));
        assert_eq!((found(&store, A, &["r1"]), found(&store, B, &["r3"])), (vec![], vec!["r3".to_owned()]));
    }
}
