//! Connection slots, and the eviction of connections when there are too many.
//!
//! A connection that waits for its client, for the head or the body of a request, costs that client nothing. So when connections run out,
//! the peer with the most waiting connections loses the one that has waited longest. Connections whose request is being answered are never
//! closed for others. If none can be closed, a few more connections are accepted anyway, for health checks.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Connections beyond the limits, for health checks.
pub(crate) const NUM_RESERVED: usize = 64;

/// Bounds on the number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// Maximum connections in total.
    pub(crate) max_connections: usize,
    /// Maximum connections of one peer.
    pub(crate) max_per_peer: usize,
}

/// Reason why a connection is answered health checks only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// The total limit is reached, and all connections are being answered.
    All,
    /// The limit of the peer is reached, and all its connections are being answered.
    Peer,
}

/// All connections.
pub(crate) struct ConnectionSlots {
    limits: ConnectionLimits,
    /// Locked for a few look-ups, never across an `await`.
    state: Mutex<State>,
}

/// Slot of one connection. Released when dropped.
pub(crate) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    id: u64,
    overload: Option<Overload>,
    closed: Arc<Notify>,
}

/// Handle that marks the request of a connection as being answered, until the answer has been sent.
#[derive(Clone)]
pub(crate) struct Answering {
    slots: Arc<ConnectionSlots>,
    id: u64,
}

#[derive(Default)]
struct State {
    /// Next number, for connections and for the moments at which they began to wait.
    next: u64,
    open: HashMap<u64, Entry>,
    peers: HashMap<IpAddr, Peer>,
    /// Waiting reserved connections by moment.
    waiting_reserved: BTreeMap<u64, u64>,
    num_reserved: usize,
}

struct Entry {
    peer: IpAddr,
    is_reserved: bool,
    waits_since: Option<u64>,
    closed: Arc<Notify>,
}

#[derive(Default)]
struct Peer {
    num_open: usize,
    /// Waiting connections of the peer by moment.
    waiting: BTreeMap<u64, u64>,
}

impl ConnectionSlots {
    pub(crate) fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// Takes a slot for a connection from `address`; `None` if even those for health checks are all being answered.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionSlot> {
        let peer = peer_of(address);
        let mut state = self.lock();
        let overload = self.make_room(&mut state, peer);
        let is_reserved = overload.is_some();
        if is_reserved && state.num_reserved >= NUM_RESERVED {
            let oldest = state.waiting_reserved.first_key_value().map(|(_, &id)| id)?;
            state.close(oldest);
        }
        let (id, closed) = (state.tick(), Arc::new(Notify::new()));
        state.open.insert(id, Entry { peer, is_reserved, waits_since: None, closed: Arc::clone(&closed) });
        match is_reserved {
            true => state.num_reserved += 1,
            false => state.peers.entry(peer).or_default().num_open += 1,
        }
        state.wait(id);
        Some(ConnectionSlot { slots: Arc::clone(self), id, overload, closed })
    }

    /// Closes the connection that has waited longest. Returns false if there is none.
    pub(crate) fn close_one(&self) -> bool {
        let mut state = self.lock();
        let spared = state.longest_waiting();
        spared.inspect(|&id| state.close(id)).is_some()
    }

    /// Makes room for one more connection of `peer` by closing another. Returns the overload if none can be closed.
    fn make_room(&self, state: &mut State, peer: IpAddr) -> Option<Overload> {
        let num_of_peer = state.peers.get(&peer).map_or(0, |peer| peer.num_open);
        let (overload, spared) = if num_of_peer >= self.limits.max_per_peer {
            (Overload::Peer, state.longest_waiting_of(peer))
        } else if state.open.len() - state.num_reserved >= self.limits.max_connections {
            (Overload::All, state.longest_waiting())
        } else {
            return None;
        };
        match spared {
            Some(id) => {
                state.close(id);
                None
            }
            None => Some(overload),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is made in one piece, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn longest_waiting_of(&self, peer: IpAddr) -> Option<u64> {
        self.peers.get(&peer)?.waiting.first_key_value().map(|(_, &id)| id)
    }

    /// Returns the longest waiting connection of the peer with the most waiting connections.
    fn longest_waiting(&self) -> Option<u64> {
        let greediest = self.peers.values().max_by_key(|peer| peer.waiting.len())?;
        greediest.waiting.first_key_value().map(|(_, &id)| id)
    }

    /// Removes connection `id` and notifies its task to end.
    fn close(&mut self, id: u64) {
        if let Some(entry) = self.remove(id) {
            entry.closed.notify_one();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        self.answer(id);
        let entry = self.open.remove(&id)?;
        if entry.is_reserved {
            self.num_reserved -= 1;
        } else if let Some(peer) = self.peers.get_mut(&entry.peer) {
            peer.num_open -= 1;
            if peer.num_open == 0 {
                self.peers.remove(&entry.peer);
            }
        }
        Some(entry)
    }

    /// Marks connection `id` as waiting for its client.
    fn wait(&mut self, id: u64) {
        let now = self.tick();
        let Some(entry) = self.open.get_mut(&id).filter(|entry| entry.waits_since.is_none()) else { return };
        entry.waits_since = Some(now);
        match entry.is_reserved {
            true => self.waiting_reserved.insert(now, id),
            false => self.peers.entry(entry.peer).or_default().waiting.insert(now, id),
        };
    }

    /// Marks connection `id` as no longer waiting.
    fn answer(&mut self, id: u64) {
        let Some(entry) = self.open.get_mut(&id) else { return };
        let Some(since) = entry.waits_since.take() else { return };
        match entry.is_reserved {
            true => self.waiting_reserved.remove(&since),
            false => self.peers.get_mut(&entry.peer).and_then(|peer| peer.waiting.remove(&since)),
        };
    }
}

impl ConnectionSlot {
    /// Returns the overload if the connection is for health checks only.
    pub(crate) fn overload(&self) -> Option<Overload> {
        self.overload
    }

    /// Returns the handle for the connection's requests.
    pub(crate) fn answering(&self) -> Answering {
        Answering { slots: Arc::clone(&self.slots), id: self.id }
    }

    /// Waits until the slot is given to another connection.
    pub(crate) async fn closed(&self) {
        self.closed.notified().await;
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.lock().remove(self.id);
    }
}

impl Answering {
    /// Marks the request as completely received.
    pub(crate) fn begin(&self) {
        self.slots.lock().answer(self.id);
    }

    /// Marks the answer as sent: the connection waits for the next request.
    pub(crate) fn end(&self) {
        self.slots.lock().wait(self.id);
    }
}

/// Returns the peer of an address. Providers give each IPv6 client a network of 2^64 addresses.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn address(peer: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, peer])
    }

    fn slots(max_connections: usize, max_per_peer: usize) -> Arc<ConnectionSlots> {
        ConnectionSlots::new(ConnectionLimits { max_connections, max_per_peer })
    }

    fn enter(slots: &Arc<ConnectionSlots>, peer: u8) -> ConnectionSlot {
        slots.enter(address(peer)).expect("a slot")
    }

    fn is_closed(slot: &ConnectionSlot) -> bool {
        slot.closed().now_or_never().is_some()
    }

    #[test]
    fn the_one_that_waited_longest_makes_room() {
        let slots = slots(2, 2);
        let (first, second) = (enter(&slots, 1), enter(&slots, 1));
        first.answering().begin();
        first.answering().end();
        let third = enter(&slots, 1);
        assert!(is_closed(&second) && !is_closed(&first) && third.overload().is_none());
    }

    #[test]
    fn the_greediest_peer_makes_room_for_others() {
        let slots = slots(4, 4);
        let modest = enter(&slots, 1);
        let greedy: Vec<_> = (0..3).map(|_| enter(&slots, 2)).collect();
        let newcomers: Vec<_> = (3..5).map(|peer| enter(&slots, peer)).collect();
        assert_eq!(greedy.iter().map(is_closed).collect::<Vec<_>>(), [true, true, false]);
        assert!(!is_closed(&modest) && newcomers.iter().all(|slot| slot.overload().is_none()));
    }

    #[test]
    fn a_peer_at_its_limit_displaces_nobody_else() {
        let slots = slots(100, 2);
        let other = enter(&slots, 1);
        let flood: Vec<_> = (0..50).map(|_| enter(&slots, 2)).collect();
        assert_eq!(flood.iter().filter(|slot| !is_closed(slot)).count(), 2);
        assert!(!is_closed(&other));
        let network: Vec<_> = (0..50u16).map(|i| slots.enter(IpAddr::from([0xfd00, 0, 0, 0, i, i, i, i])).unwrap()).collect();
        assert_eq!(network.iter().filter(|slot| !is_closed(slot)).count(), 2, "one network of addresses is one peer");
    }

    #[test]
    fn those_being_answered_are_kept_and_health_checks_have_a_reserve() {
        let slots = slots(2, 2);
        let answered: Vec<_> = (0..2).map(|_| enter(&slots, 1)).collect();
        answered.iter().for_each(|slot| slot.answering().begin());
        assert_eq!(enter(&slots, 1).overload(), Some(Overload::Peer));
        assert_eq!(enter(&slots, 2).overload(), Some(Overload::All));
        let reserved: Vec<_> = (0..2 * NUM_RESERVED).map(|_| enter(&slots, 2)).collect();
        assert_eq!(reserved.iter().filter(|slot| !is_closed(slot)).count(), NUM_RESERVED, "the reserve itself is bounded");
        assert!(!answered.iter().any(is_closed));
        drop(answered);
        assert_eq!(enter(&slots, 3).overload(), None);
    }

    #[test]
    fn a_reserve_that_is_being_answered_takes_no_more() {
        let slots = slots(1, 1);
        let answered = enter(&slots, 1);
        answered.answering().begin();
        let reserved: Vec<_> = (0..NUM_RESERVED).map(|_| enter(&slots, 1)).collect();
        reserved.iter().for_each(|slot| slot.answering().begin());
        assert!(slots.enter(address(9)).is_none());
    }

    #[test]
    fn nothing_is_left_of_connections_that_have_gone() {
        let slots = slots(2, 2);
        for _ in 0..10 {
            let held: Vec<_> = (0..5).map(|peer| enter(&slots, peer)).collect();
            held[4].answering().begin();
            held[0].answering().end();
        }
        let state = slots.lock();
        assert!(state.open.is_empty() && state.peers.is_empty() && state.waiting_reserved.is_empty() && state.num_reserved == 0);
    }
}
