//! Finds blocks by their content and by everything before it, on the device and in the host tier.
//!
//! Blocks form a forest, one tree per first block and scope. A lookup finds a block through the hash of its chain, which costs one probe,
//! and then confirms it: the tokens must be equal and the parent must be the very block confirmed before it. By induction from the root a
//! hit has an equal past, so a collision of hashes costs a miss and never a wrong result.
//! Siblings of one scope are linked, so that a partly equal block can be found below the last equal one.
//!
//! A path may begin in a scope that its reader may read and continue in the reader's own, never back and never into a third.
//!
//! Invariant: the parent of an indexed block is indexed. Removing a block therefore removes everything below it. Content that moves between
//! device and host keeps its place in the forest, so results and read access do not depend on its location.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tokens::{BlockHash, BlockId, BlockSize, HostBlockId, Scope, TokenId};

use crate::name_hasher::NameHasher;
use crate::{ExactBlock, Place};

/// Most siblings compared when searching a partly equal block, newest first; chosen, so that a lookup stays cheap below a system prompt
/// with thousands of different continuations.
const MAX_PARTIAL_CANDIDATES: usize = 64;

/// Tokens of a sequence, with the hashes of its leading full blocks and its scope.
#[derive(Clone, Copy, Debug)]
pub struct HashedTokens<'a> {
    /// Scope in which blocks are searched and stored.
    pub scope: Scope,
    /// The sequence from its start.
    pub tokens: &'a [TokenId],
    /// As of `tokens::hash_full_blocks` for the same scope and tokens.
    pub hashes: &'a [BlockHash],
    /// Scopes in which its beginning is also searched. Nothing is stored in them.
    pub readable: &'a [ReadableScope],
}

/// A scope that a sequence may read besides its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadableScope {
    /// The scope.
    pub scope: Scope,
    /// As of `tokens::hash_full_blocks` for this scope and the sequence's tokens.
    pub hashes: Arc<[BlockHash]>,
}

/// Indexed part of the beginning of a sequence.
///
/// The places are valid until the pool next changes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PrefixMatch {
    /// Equal full blocks, from the start.
    pub blocks: Vec<Place>,
    /// Number of tokens in `blocks`.
    pub num_tokens: usize,
    /// Best partial match after `blocks`. It must be copied before it is continued.
    pub partial: Option<PartialMatch>,
}

/// A block whose first tokens are equal to the next ones of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialMatch {
    /// The block.
    pub block: Place,
    /// Number of equal leading tokens; at least one.
    pub num_tokens: usize,
}

/// Result of offering a block to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insertion {
    /// The block is findable from now on.
    Stored,
    /// The block is findable from now on and replaces a copy in the host tier.
    Replaced(HostBlockId),
    /// This block already holds the same tokens after the same past.
    Duplicate(BlockId),
    /// The parent is not indexed, or another chain has the same hash.
    Refused,
}

/// Exact full blocks by content.
#[derive(Debug)]
pub struct PrefixIndex {
    block_size: BlockSize,
    /// Number of blocks of the device; later entries are of the host tier.
    num_blocks: usize,
    entries: Vec<Option<Entry>>,
    by_hash: HashMap<BlockHash, Place, BuildHasherDefault<NameHasher>>,
    /// Newest block of each scope at the start of sequences or below a block of another scope; its siblings are the others.
    branches: BTreeMap<(Option<Place>, Scope), Place>,
    version: u64,
}

#[derive(Debug)]
struct Entry {
    hash: BlockHash,
    scope: Scope,
    tokens: Box<[TokenId]>,
    /// Number of blocks before it on its path.
    depth: u32,
    parent: Option<Place>,
    /// Newest child of the same scope.
    first_child: Option<Place>,
    prev_sibling: Option<Place>,
    next_sibling: Option<Place>,
}

impl PrefixMatch {
    /// Keeps the leading `num_blocks` blocks, of `block_size` tokens each; a partial match after removed blocks is removed too.
    pub fn truncate(&mut self, num_blocks: usize, block_size: BlockSize) {
        if num_blocks < self.blocks.len() {
            self.blocks.truncate(num_blocks);
            self.num_tokens = num_blocks * block_size.as_usize();
            self.partial = None;
        }
    }
}

impl PrefixIndex {
    /// Creates an empty index of a pool of `num_blocks` blocks and a host tier of `num_host_blocks`.
    pub(crate) fn new(num_blocks: u32, num_host_blocks: u32, block_size: BlockSize) -> Self {
        let num_blocks = num_blocks as usize;
        let entries = (0..num_blocks + num_host_blocks as usize).map(|_| None).collect();
        Self { block_size, num_blocks, entries, by_hash: HashMap::default(), branches: BTreeMap::new(), version: 0 }
    }

    fn at(&self, place: Place) -> usize {
        match place {
            Place::Device(block) => block.0 as usize,
            Place::Host(slot) => self.num_blocks + slot.0 as usize,
        }
    }

    /// True if the content of `block` is findable.
    #[must_use]
    pub fn contains(&self, block: Place) -> bool {
        self.entries[self.at(block)].is_some()
    }

    /// Returns the number of blocks before the content of `block` on its path.
    pub(crate) fn depth(&self, block: Place) -> u32 {
        self.entry(block).depth
    }

    /// True if other content is found only through `block`.
    pub(crate) fn has_children(&self, block: Place) -> bool {
        self.entry(block).first_child.is_some() || self.branches.range(scopes_below(block)).next().is_some()
    }

    /// Returns the number of findable blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// True if no block is findable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Returns a version that grows with every change, so that a caller can detect stale results.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Counts the indexed leading blocks of `sequence`. An estimate: nothing is confirmed. Takes the logarithm of their number, as all
    /// blocks before an indexed one are indexed.
    #[must_use]
    pub fn count_leading(&self, sequence: HashedTokens<'_>) -> usize {
        let is_here = |idx: usize| self.place_in(sequence, idx).is_some();
        let (mut here, mut missing) = (0, sequence.hashes.len());
        // Most sequences are indexed from the start or not at all.
        if !is_here(0) {
            return 0;
        }
        while here + 1 < missing {
            let middle = here.midpoint(missing);
            if is_here(middle) { here = middle } else { missing = middle }
        }
        here + 1
    }

    /// Returns the place of block `idx` of `sequence` in one of the scopes it may read. An estimate: nothing is confirmed.
    #[must_use]
    pub fn place_in(&self, sequence: HashedTokens<'_>, idx: usize) -> Option<Place> {
        let others = sequence.readable.iter().map(|scope| &scope.hashes[..]);
        std::iter::once(sequence.hashes).chain(others).find_map(|hashes| self.by_hash.get(hashes.get(idx)?).copied())
    }

    /// Returns the indexed leading full blocks of `sequence`, each confirmed: those of the longest path that begins in one of the scopes it
    /// may read and continues in its own.
    #[must_use]
    pub fn match_full_blocks(&self, sequence: HashedTokens<'_>) -> Vec<Place> {
        let HashedTokens { scope, tokens, hashes, readable } = sequence;
        let mut longest = Vec::new();
        self.extend_path(&mut longest, scope, tokens, hashes);
        for other in readable {
            let mut path = Vec::new();
            self.extend_path(&mut path, other.scope, tokens, &other.hashes);
            if !path.is_empty() {
                self.extend_path(&mut path, scope, tokens, hashes);
            }
            if path.len() > longest.len() {
                longest = path;
            }
        }
        longest
    }

    /// Extends `path` by the blocks of one scope that continue it.
    fn extend_path(&self, path: &mut Vec<Place>, scope: Scope, tokens: &[TokenId], hashes: &[BlockHash]) {
        // All lookups precede the first comparison: they miss the caches, and issued together their latencies overlap.
        let blocks = tokens.chunks_exact(self.block_size.as_usize()).zip(hashes).skip(path.len());
        let found: Vec<_> = blocks.map_while(|(tokens, hash)| Some((tokens, *self.by_hash.get(hash)?))).collect();
        for (tokens, block) in found {
            if !self.holds(block, scope, path.last().copied(), tokens) {
                return;
            }
            path.push(block);
        }
    }

    /// Matches the first `max_tokens` tokens of `sequence`, which must be all or fewer than its tokens.
    ///
    /// A partial match is only of the sequence's own scope: it becomes part of a block of that scope, whose label has to cover it.
    #[must_use]
    pub fn match_prefix(&self, sequence: HashedTokens<'_>, max_tokens: usize) -> PrefixMatch {
        let block_size = self.block_size.as_usize();
        let blocks = self.match_full_blocks(HashedTokens { tokens: &sequence.tokens[..max_tokens], ..sequence });
        let num_tokens = blocks.len() * block_size;
        let rest = &sequence.tokens[num_tokens..max_tokens];
        let parent = blocks.last().copied();
        let whole = || {
            let tokens = sequence.tokens.get(num_tokens..num_tokens + block_size)?;
            let block = self.find(sequence.scope, parent, *sequence.hashes.get(blocks.len())?, tokens)?;
            (!rest.is_empty()).then_some(PartialMatch { block, num_tokens: rest.len() })
        };
        let partial = whole().or_else(|| self.match_partial(sequence.scope, parent, rest));
        PrefixMatch { blocks, num_tokens, partial }
    }

    /// Returns the block of one scope below `parent` that shares most leading tokens with `tokens`, the newest of equals.
    fn match_partial(&self, scope: Scope, parent: Option<Place>, tokens: &[TokenId]) -> Option<PartialMatch> {
        let first = self.first_child(parent, scope);
        let siblings = std::iter::successors(first, |&block| self.entry(block).next_sibling);
        let mut best: Option<PartialMatch> = None;
        for block in siblings.take(MAX_PARTIAL_CANDIDATES) {
            let num_tokens = common_prefix(&self.entry(block).tokens, tokens);
            if num_tokens > best.map_or(0, |best| best.num_tokens) {
                best = Some(PartialMatch { block, num_tokens });
            }
        }
        best
    }

    /// Returns the newest block of `scope` directly below `parent`.
    fn first_child(&self, parent: Option<Place>, scope: Scope) -> Option<Place> {
        match parent.map(|parent| self.entry(parent)) {
            Some(parent) if parent.scope == scope => parent.first_child,
            _ => self.branches.get(&(parent, scope)).copied(),
        }
    }

    /// Makes `child` the newest one and returns the previous one.
    fn replace_first_child(&mut self, parent: Option<Place>, scope: Scope, child: Option<Place>) -> Option<Place> {
        match parent.map(|parent| self.entry_mut(parent)) {
            Some(parent) if parent.scope == scope => std::mem::replace(&mut parent.first_child, child),
            _ => match child {
                Some(child) => self.branches.insert((parent, scope), child),
                None => self.branches.remove(&(parent, scope)),
            },
        }
    }

    /// Returns the indexed block that holds `tokens` below `parent`.
    fn find(&self, scope: Scope, parent: Option<Place>, hash: BlockHash, tokens: &[TokenId]) -> Option<Place> {
        let &block = self.by_hash.get(&hash)?;
        self.holds(block, scope, parent, tokens).then_some(block)
    }

    /// True if `block` holds `tokens` of `scope` below `parent`.
    fn holds(&self, block: Place, scope: Scope, parent: Option<Place>, tokens: &[TokenId]) -> bool {
        let entry = self.entry(block);
        entry.scope == scope && entry.parent == parent && *entry.tokens == *tokens
    }

    /// Makes the full block `idx` of `sequence`, which `block` holds, findable below `parent`, which holds the one before.
    pub(crate) fn insert(
        &mut self,
        block: &ExactBlock,
        parent: Option<&ExactBlock>,
        sequence: HashedTokens<'_>,
        idx: usize,
    ) -> Insertion {
        let block_size = self.block_size.as_usize();
        let tokens = &sequence.tokens[idx * block_size..(idx + 1) * block_size];
        let hash = sequence.hashes[idx];
        let (block, parent) = (Place::Device(block.id()), parent.map(|parent| Place::Device(parent.id())));
        match self.find(sequence.scope, parent, hash, tokens) {
            Some(Place::Device(duplicate)) => return Insertion::Duplicate(duplicate),
            Some(Place::Host(slot)) => {
                self.move_entry(Place::Host(slot), block);
                return Insertion::Replaced(slot);
            }
            None => {}
        }
        if self.by_hash.contains_key(&hash) || parent.is_some_and(|parent| !self.contains(parent)) {
            return Insertion::Refused;
        }
        self.link(block, NewEntry { hash, scope: sequence.scope, tokens, parent });
        Insertion::Stored
    }

    fn link(&mut self, block: Place, new: NewEntry<'_>) {
        let NewEntry { hash, scope, tokens, parent } = new;
        let next_sibling = self.replace_first_child(parent, scope, Some(block));
        if let Some(next) = next_sibling {
            self.entry_mut(next).prev_sibling = Some(block);
        }
        let depth = parent.map_or(0, |parent| self.depth(parent) + 1);
        let tokens = tokens.into();
        let entry = Entry { hash, scope, tokens, depth, parent, first_child: None, prev_sibling: None, next_sibling };
        let at = self.at(block);
        let before = self.entries[at].replace(entry);
        assert!(before.is_none(), "{block:?} is indexed already");
        self.by_hash.insert(hash, block);
        self.version += 1;
    }

    /// Removes `block` and everything below it; returns the removed blocks, `block` first.
    pub(crate) fn remove_subtree(&mut self, block: Place) -> Vec<Place> {
        self.unlink(block);
        let mut removed = vec![block];
        let mut at = 0;
        while let Some(&block) = removed.get(at) {
            let entry_at = self.at(block);
            let entry = self.entries[entry_at].take().expect("a child of an indexed block is indexed");
            self.by_hash.remove(&entry.hash);
            for first in self.take_branches(block).into_iter().chain(entry.first_child) {
                removed.extend(std::iter::successors(Some(first), |&child| self.entry(child).next_sibling));
            }
            at += 1;
        }
        self.version += 1;
        removed
    }

    /// Removes and returns the first blocks of other scopes below `block` from the branches.
    fn take_branches(&mut self, block: Place) -> Vec<Place> {
        let keys: Vec<_> = self.branches.range(scopes_below(block)).map(|(&key, _)| key).collect();
        keys.iter().filter_map(|key| self.branches.remove(key)).collect()
    }

    /// Moves the entry of `from` to the free place `to`. Lookups find the same content.
    pub(crate) fn move_entry(&mut self, from: Place, to: Place) {
        let (from_at, to_at) = (self.at(from), self.at(to));
        let entry = self.entries[from_at].take().expect("only what is indexed moves");
        self.by_hash.insert(entry.hash, to);
        match entry.prev_sibling {
            Some(prev) => self.entry_mut(prev).next_sibling = Some(to),
            None => drop(self.replace_first_child(entry.parent, entry.scope, Some(to))),
        }
        if let Some(next) = entry.next_sibling {
            self.entry_mut(next).prev_sibling = Some(to);
        }
        for first in self.take_branches(from) {
            self.branches.insert((Some(to), self.entry(first).scope), first);
            self.set_parent(first, to);
        }
        if let Some(first) = entry.first_child {
            self.set_parent(first, to);
        }
        let before = self.entries[to_at].replace(entry);
        assert!(before.is_none(), "{to:?} is indexed already");
    }

    /// Links `first` and the siblings after it below `parent`.
    fn set_parent(&mut self, first: Place, parent: Place) {
        let mut next = Some(first);
        while let Some(child) = next {
            let entry = self.entry_mut(child);
            entry.parent = Some(parent);
            next = entry.next_sibling;
        }
    }

    /// Removes `block` from the list of its siblings.
    fn unlink(&mut self, block: Place) {
        let &Entry { scope, parent, prev_sibling, next_sibling, .. } = self.entry(block);
        if let Some(next) = next_sibling {
            self.entry_mut(next).prev_sibling = prev_sibling;
        }
        match prev_sibling {
            Some(prev) => self.entry_mut(prev).next_sibling = next_sibling,
            None => {
                self.replace_first_child(parent, scope, next_sibling);
            }
        }
    }

    /// Removes all entries.
    pub(crate) fn clear(&mut self) {
        self.entries.iter_mut().for_each(|entry| *entry = None);
        self.by_hash.clear();
        self.branches.clear();
        self.version += 1;
    }

    fn place(&self, at: usize) -> Place {
        match at.checked_sub(self.num_blocks) {
            None => Place::Device(BlockId(at as u32)),
            Some(slot) => Place::Host(HostBlockId(slot as u32)),
        }
    }

    /// Panics unless all links agree.
    pub(crate) fn check_invariants(&self) {
        let mut num_entries = 0;
        for (i, entry) in self.entries.iter().enumerate().filter_map(|(i, entry)| Some((i, entry.as_ref()?))) {
            let block = self.place(i);
            num_entries += 1;
            assert_eq!(self.by_hash.get(&entry.hash), Some(&block), "{block:?} is not found by its hash");
            assert_eq!(entry.tokens.len(), self.block_size.as_usize(), "{block:?} is not full");
            let depth = entry.parent.map_or(0, |parent| self.depth(parent) + 1);
            assert_eq!(entry.depth, depth, "{block:?} stands elsewhere on its path");
            if let Some(next) = entry.next_sibling {
                let next = self.entry(next);
                assert_eq!(next.prev_sibling, Some(block), "siblings of {block:?} disagree");
                assert_eq!((next.parent, next.scope), (entry.parent, entry.scope), "siblings of {block:?} are not siblings");
            }
            if entry.prev_sibling.is_none() {
                let first = self.first_child(entry.parent, entry.scope);
                assert_eq!(first, Some(block), "{block:?} is not the first child of its parent");
            }
        }
        assert_eq!(self.by_hash.len(), num_entries, "a hash leads nowhere");
        for (&(parent, scope), &first) in &self.branches {
            let entry = self.entry(first);
            assert_eq!((entry.parent, entry.scope), (parent, scope), "a branch leads elsewhere");
        }
    }

    fn entry(&self, block: Place) -> &Entry {
        self.entries[self.at(block)].as_ref().expect("links lead to indexed blocks")
    }

    fn entry_mut(&mut self, block: Place) -> &mut Entry {
        let at = self.at(block);
        self.entries[at].as_mut().expect("links lead to indexed blocks")
    }
}

#[derive(Clone, Copy)]
struct NewEntry<'a> {
    hash: BlockHash,
    scope: Scope,
    tokens: &'a [TokenId],
    parent: Option<Place>,
}

/// Returns the keys of branches below `block` into other scopes.
fn scopes_below(block: Place) -> RangeInclusive<(Option<Place>, Scope)> {
    (Some(block), Scope(u64::MIN))..=(Some(block), Scope(u64::MAX))
}

fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use tokens::hash_full_blocks;

    use super::*;
    use crate::BlockEntry;

    const SIZE: BlockSize = BlockSize::new(2).unwrap();

    fn ids(text: &str) -> Vec<TokenId> {
        text.bytes().map(|byte| TokenId(byte.into())).collect()
    }

    /// Creates an index in which every sequence of `stored`, `scope:text`, got its own new blocks for the part not found; `1<2:text` is of
    /// scope 1 and may read scope 2.
    fn index_of(stored: &str) -> PrefixIndex {
        let mut index = PrefixIndex::new(32, 8, SIZE);
        let mut next = 0;
        for word in stored.split_whitespace() {
            let (scope, text) = word.split_once(':').unwrap();
            let (scope, readable) =
                scope.split_once('<').map_or((scope, Vec::new()), |(own, other)| (own, vec![other.parse().unwrap()]));
            let (scope, tokens) = (Scope(scope.parse().unwrap()), ids(text));
            let (hashes, readable) = (hash_full_blocks(scope, &tokens, SIZE), readable_of(&readable, &tokens));
            let sequence = HashedTokens { scope, tokens: &tokens, hashes: &hashes, readable: &readable };
            let mut chain: Vec<_> = index.match_full_blocks(sequence).into_iter().map(|place| exact(device(place))).collect();
            for idx in chain.len()..hashes.len() {
                let block = exact(BlockId(next));
                next += 1;
                assert_eq!(index.insert(&block, chain.last(), sequence, idx), Insertion::Stored);
                chain.push(block);
            }
        }
        index.check_invariants();
        index
    }

    /// Returns a reference to `block`. The index does not look at its position.
    fn exact(block: BlockId) -> ExactBlock {
        ExactBlock::new(BlockEntry { block, position: 0 })
    }

    fn device(place: Place) -> BlockId {
        match place {
            Place::Device(block) => block,
            Place::Host(slot) => panic!("{slot:?} is not on the device"),
        }
    }

    fn removed(index: &mut PrefixIndex, block: u32) -> Vec<u32> {
        index.remove_subtree(Place::Device(BlockId(block))).into_iter().map(|place| device(place).0).collect()
    }

    fn readable_of(scopes: &[u64], tokens: &[TokenId]) -> Vec<ReadableScope> {
        let scope = |&scope| ReadableScope { scope: Scope(scope), hashes: hash_full_blocks(Scope(scope), tokens, SIZE).into() };
        scopes.iter().map(scope).collect()
    }

    #[track_caller]
    fn check(index: &PrefixIndex, scope: u64, text: &str, max_tokens: usize, expected: &str) {
        check_readable(index, &[scope], text, max_tokens, expected);
    }

    /// Checks a match. `scopes`: the own scope, then those that may be read. `expected`: matched block ids, then the partly matched one as
    /// `block+tokens`.
    #[track_caller]
    fn check_readable(index: &PrefixIndex, scopes: &[u64], text: &str, max_tokens: usize, expected: &str) {
        let (scope, tokens) = (Scope(scopes[0]), ids(text));
        let (hashes, readable) = (hash_full_blocks(scope, &tokens, SIZE), readable_of(&scopes[1..], &tokens));
        let sequence = HashedTokens { scope, tokens: &tokens, hashes: &hashes, readable: &readable };
        let found = index.match_prefix(sequence, max_tokens);
        assert_eq!(
            index.count_leading(HashedTokens { tokens: &tokens[..max_tokens], ..sequence }).min(max_tokens / 2),
            found.blocks.len()
        );
        let name = |place| match place {
            Place::Device(block) => block.0.to_string(),
            Place::Host(slot) => format!("h{}", slot.0),
        };
        let blocks = found.blocks.iter().map(|&place| name(place));
        let partial = found.partial.map(|partial| format!("{}+{}", name(partial.block), partial.num_tokens));
        assert_eq!(blocks.chain(partial).collect::<Vec<_>>().join(" "), expected);
        assert_eq!(found.num_tokens, 2 * found.blocks.len());
    }

    #[test]
    fn the_longest_known_chain_is_found() {
        let index = index_of("0:abcd 0:abxy");
        check(&index, 0, "abxyz", 5, "0 2");
        check(&index, 0, "zzabcd", 6, "");
    }

    #[test]
    fn nothing_is_found_in_another_scope() {
        let index = index_of("1:abcd");
        check(&index, 2, "abcd", 4, "");
        check(&index, 2, "abc", 3, "");
    }

    #[test]
    fn the_block_behind_the_chain_can_match_partly() {
        check(&index_of("0:abcd"), 0, "abcx", 4, "0 1+1");
        check(&index_of("0:abcd"), 0, "ax", 2, "0+1");
    }

    #[test]
    fn a_whole_hit_is_cut_before_its_last_token() {
        check(&index_of("0:abcd"), 0, "abcd", 3, "0 1+1");
    }

    #[test]
    fn a_path_may_begin_in_a_readable_scope_and_go_on_in_its_own() {
        let index = index_of("9:abcdef 1<9:abcdxy 2<9:abcdxz");
        check_readable(&index, &[1, 9], "abcdxyz", 7, "0 1 3");
        check_readable(&index, &[1, 9], "abcdx", 5, "0 1 3+1");
        check_readable(&index, &[9], "abcdx", 5, "0 1");
    }

    #[test]
    fn a_block_of_another_scope_does_not_match_partly() {
        let index = index_of("9:abcdef");
        check_readable(&index, &[1, 9], "abcde", 5, "0 1");
        check_readable(&index, &[1, 9], "abcdef", 5, "0 1");
        check_readable(&index, &[1, 9], "ax", 2, "");
    }

    #[test]
    fn who_may_not_read_the_beginning_does_not_find_the_rest() {
        let index = index_of("9:abcd 1<9:abcdxy");
        check_readable(&index, &[1], "abcdxy", 6, "");
        check_readable(&index, &[1, 8], "abcdxy", 6, "");
        check_readable(&index, &[9], "abcdxy", 6, "0 1");
        check_readable(&index, &[2, 9], "abcdxy", 6, "0 1");
        check_readable(&index, &[2, 1], "abcdxy", 6, "");
    }

    #[test]
    fn the_longest_of_several_paths_is_found_and_the_own_one_of_equals() {
        let index = index_of("9:ab 8:abcd 1:ab 2:abcdef");
        check_readable(&index, &[1, 9, 8], "abcd", 4, "1 2");
        check_readable(&index, &[1, 9], "abxx", 4, "3");
        check_readable(&index, &[2, 9, 8], "abcdef", 6, "4 5 6");
    }

    #[test]
    fn a_removed_block_takes_other_scopes_below_it_along() {
        let mut index = index_of("9:abcd 1<9:abcdxy 2<9:abcdxy 1<9:abzz");
        assert_eq!(removed(&mut index, 1), [1, 2, 3]);
        index.check_invariants();
        check_readable(&index, &[1, 9], "abzz", 4, "0 4");
        removed(&mut index, 0);
        index.check_invariants();
        assert!(index.is_empty());
    }

    #[test]
    fn a_collision_is_a_miss() {
        let mut index = PrefixIndex::new(4, 0, SIZE);
        let (a, b) = (ids("ab"), ids("xy"));
        let hashes = [BlockHash(7)];
        let (block, other) = (exact(BlockId(0)), exact(BlockId(1)));
        let stored = HashedTokens { scope: Scope(0), tokens: &a, hashes: &hashes, readable: &[] };
        let collides = HashedTokens { scope: Scope(0), tokens: &b, hashes: &hashes, readable: &[] };
        assert_eq!(index.insert(&block, None, stored, 0), Insertion::Stored);
        assert_eq!(index.match_full_blocks(collides), []);
        assert_eq!(index.insert(&other, None, collides, 0), Insertion::Refused);
        assert_eq!(index.match_full_blocks(stored), [Place::Device(BlockId(0))]);
    }

    #[test]
    fn equal_hash_and_tokens_in_another_scope_are_a_miss() {
        let mut index = PrefixIndex::new(4, 0, SIZE);
        let (tokens, hashes) = (ids("ab"), [BlockHash(7)]);
        let stored = HashedTokens { scope: Scope(0), tokens: &tokens, hashes: &hashes, readable: &[] };
        assert_eq!(index.insert(&exact(BlockId(0)), None, stored, 0), Insertion::Stored);
        assert_eq!(index.match_full_blocks(HashedTokens { scope: Scope(1), ..stored }), []);
    }

    #[test]
    fn equal_hash_and_tokens_behind_another_parent_are_a_miss() {
        let mut index = PrefixIndex::new(4, 0, SIZE);
        let (first, second) = (ids("abcd"), ids("xycd"));
        let chain = [BlockHash(1), BlockHash(7)];
        let other_chain = [BlockHash(2), BlockHash(7)];
        let blocks: Vec<_> = (0..3).map(|i| exact(BlockId(i))).collect();
        let stored = HashedTokens { scope: Scope(0), tokens: &first, hashes: &chain, readable: &[] };
        let collides = HashedTokens { scope: Scope(0), tokens: &second, hashes: &other_chain, readable: &[] };
        assert_eq!(index.insert(&blocks[0], None, stored, 0), Insertion::Stored);
        assert_eq!(index.insert(&blocks[1], Some(&blocks[0]), stored, 1), Insertion::Stored);
        assert_eq!(index.insert(&blocks[2], None, collides, 0), Insertion::Stored);
        assert_eq!(index.match_full_blocks(collides), [Place::Device(BlockId(2))]);
    }

    #[test]
    fn a_removed_block_takes_its_descendants_with_it() {
        let mut index = index_of("0:abcdef 0:abxy 0:zz");
        assert_eq!(removed(&mut index, 1), [1, 2]);
        index.check_invariants();
        check(&index, 0, "abcdef", 6, "0");
        assert_eq!(removed(&mut index, 0), [0, 3]);
        index.check_invariants();
        check(&index, 0, "abxy", 4, "");
        check(&index, 0, "zz", 2, "4");
    }

    /// Applies `moves` from left to right: `2h0` moves the content of block 2 to place 0 of the host, `h0>3` moves that to block 3.
    #[track_caller]
    fn check_moved(stored: &str, moves: &str, sought: (&[u64], &str), expected: &str) {
        let mut index = index_of(stored);
        for step in moves.split_whitespace() {
            let (block, slot, is_fetch) = match step.split_once('>') {
                Some((slot, block)) => (block, &slot[1..], true),
                None => step.split_once('h').map(|(block, slot)| (block, slot, false)).unwrap(),
            };
            let device = Place::Device(BlockId(block.parse().unwrap()));
            let host = Place::Host(HostBlockId(slot.parse().unwrap()));
            let (from, to) = if is_fetch { (host, device) } else { (device, host) };
            index.move_entry(from, to);
            index.check_invariants();
        }
        check_readable(&index, sought.0, sought.1, sought.1.len(), expected);
    }

    #[test]
    fn what_moves_to_the_host_is_found_there_and_so_is_what_follows() {
        check_moved("0:abcdef", "2h0", (&[0], "abcdefx"), "0 1 h0");
        check_moved("0:abcdef", "1h3", (&[0], "abcdefx"), "0 h3 2");
        check_moved("0:abcdef 0:abxy 0:zz", "0h1 2h0", (&[0], "abxyz"), "h1 3");
        check_moved("0:abcdef", "2h0 h0>9", (&[0], "abcdefx"), "0 1 9");
        check_moved("0:abcd 0:abxy", "2h5", (&[0], "abxz"), "0 h5+1");
    }

    #[test]
    fn what_branches_off_into_another_scope_stays_behind_what_moves() {
        check_moved("9:abcd 1<9:abcdxy 2<9:abcdxz", "1h0 2h1", (&[1, 9], "abcdxy"), "0 h0 h1");
        check_moved("9:abcd 1<9:abcdxy 2<9:abcdxz", "1h0 2h1", (&[2, 9], "abcdxz"), "0 h0 3");
        check_moved("9:abcd 1<9:abcdxy", "1h0", (&[1], "abcdxy"), "");
    }

    #[test]
    fn what_is_computed_again_takes_the_place_of_its_copy_in_the_host() {
        let mut index = index_of("0:abcd");
        let tokens = ids("abcd");
        let hashes = hash_full_blocks(Scope(0), &tokens, SIZE);
        let sequence = HashedTokens { scope: Scope(0), tokens: &tokens, hashes: &hashes, readable: &[] };
        index.move_entry(Place::Device(BlockId(0)), Place::Host(HostBlockId(2)));
        index.move_entry(Place::Device(BlockId(1)), Place::Host(HostBlockId(3)));
        assert_eq!(index.insert(&exact(BlockId(7)), None, sequence, 0), Insertion::Replaced(HostBlockId(2)));
        index.check_invariants();
        check(&index, 0, "abcd", 4, "7 h3");
    }
}
