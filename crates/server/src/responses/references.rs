//! Items that requests refer to, read from stored responses.

use std::cell::RefCell;
use std::collections::BTreeMap;

use protocol::InputItem;
use tokens::TenantId;

use super::store::ResponseStore;
use crate::error::ApiError;

/// Stored items of a tenant, for one request. What is read for it is bounded, however often an item is referred to.
pub(crate) struct References<'a> {
    store: &'a ResponseStore,
    tenant: TenantId,
    max_bytes: usize,
    read: RefCell<Read>,
}

#[derive(Default)]
struct Read {
    /// Items of all turns read so far, with their bytes.
    items: BTreeMap<String, (InputItem, usize)>,
    num_bytes: usize,
}

impl<'a> References<'a> {
    /// Creates references to items of `tenant` of at most `max_bytes` bytes together.
    pub(crate) fn new(store: &'a ResponseStore, tenant: TenantId, max_bytes: usize) -> Self {
        Self { store, tenant, max_bytes, read: RefCell::default() }
    }

    /// Returns the item `id`, if it is stored.
    ///
    /// # Errors
    /// If the bytes are used up.
    pub(crate) fn find(&self, id: &str) -> Result<Option<InputItem>, ApiError> {
        let mut read = self.read.borrow_mut();
        if !read.items.contains_key(id) {
            let Some(turn) = self.store.turn_of_item(self.tenant, id) else { return Ok(None) };
            self.spend(&mut read, turn.num_bytes())?;
            for item in turn.items() {
                let num_bytes = serde_json::to_string(&item).map_or(0, |text| text.len());
                item.id.clone().map(|id| read.items.insert(id, (item, num_bytes)));
            }
        }
        let Some((item, num_bytes)) = read.items.get(id).cloned() else { return Ok(None) };
        self.spend(&mut read, num_bytes)?;
        Ok(Some(item))
    }

    fn spend(&self, read: &mut Read, num_bytes: usize) -> Result<(), ApiError> {
        read.num_bytes += num_bytes;
        if read.num_bytes > self.max_bytes { Err(ApiError::BodyTooLarge { limit: self.max_bytes }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::object::tests::object;
    use super::super::store::ResponseOwner;
    use super::*;

    #[test]
    fn an_item_is_found_by_its_tenant_and_not_copied_without_end() {
        let store = Arc::new(ResponseStore::new(8, 1 << 20));
        let input = json!([{"type": "message", "id": "msg_1", "role": "user", "content": "x".repeat(100)}]);
        let input: Vec<InputItem> = serde_json::from_value(input).unwrap();
        let response = object("resp_1");
        store.begin("resp_1", ResponseOwner { tenant: TenantId(1), session: None }, None, &input).keep(&response);
        let references = References::new(&store, TenantId(1), 8 << 10);
        assert_eq!(references.find("msg_1").unwrap(), Some(input[0].clone()));
        let said = references.find(response.output[0].id()).unwrap().unwrap();
        assert_eq!(said.role.as_deref(), Some("assistant"));
        assert_eq!(references.find("msg_2").unwrap(), None);
        assert_eq!(References::new(&store, TenantId(2), 8 << 10).find("msg_1").unwrap(), None);
        let num_found = (0..1000).take_while(|_| references.find("msg_1").is_ok()).count();
        assert!((10..100).contains(&num_found), "{num_found}");
    }
}
