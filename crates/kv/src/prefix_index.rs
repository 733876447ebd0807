//! Finds blocks by what they hold and by everything before it.
//!
//! Blocks form a forest, one tree per first block and scope. A block is found through the hash of its chain, which costs one probe,
//! and then confirmed: the tokens must be equal and the parent must be the very block confirmed before it. By induction from the
//! root a hit has an equal past, so a collision of hashes costs a miss and never a wrong answer.
//! Siblings are linked, so that a block that is only partly equal can be found below the last equal one.
//!
//! Invariant: the parent of an indexed block is indexed. Removing a block therefore removes everything below it.

use std::collections::HashMap;

use tokens::{BlockHash, BlockId, BlockSize, CacheSalt, TokenId};

use crate::ExactBlock;

/// Siblings looked at when searching a partly equal block, newest first; chosen, so that a lookup stays cheap below a system prompt
/// that thousands of different conversations continue.
const MAX_PARTIAL_CANDIDATES: usize = 64;

/// Tokens of a sequence, with the hashes of its leading full blocks and its scope.
#[derive(Clone, Copy, Debug)]
pub struct HashedTokens<'a> {
    /// Scope in which blocks are searched and stored.
    pub salt: CacheSalt,
    /// The sequence from its start.
    pub tokens: &'a [TokenId],
    /// As of `tokens::hash_full_blocks` for the same scope and tokens.
    pub hashes: &'a [BlockHash],
}

/// What the index holds of the beginning of a sequence.
///
/// The ids are good until the pool is next changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PrefixMatch {
    /// Equal full blocks, from the start on.
    pub blocks: Vec<BlockId>,
    /// Tokens in `blocks`.
    pub num_tokens: usize,
    /// The block that goes on best behind `blocks`. It must be copied before it is continued.
    pub partial: Option<PartialMatch>,
}

/// A block whose first tokens are equal to the next ones of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialMatch {
    /// Which block.
    pub block: BlockId,
    /// How many leading tokens are equal; at least one.
    pub num_tokens: usize,
}

/// What became of a block offered to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insertion {
    /// It can be found from now on.
    Stored,
    /// This block holds the same tokens behind the same past already.
    Duplicate(BlockId),
    /// Its parent is not indexed, or another chain has the same hash.
    Refused,
}

/// Exact full blocks by content.
#[derive(Debug)]
pub struct PrefixIndex {
    block_size: BlockSize,
    /// By block id.
    entries: Vec<Option<Entry>>,
    by_hash: HashMap<BlockHash, BlockId>,
    /// Newest first block of each scope; the others are its siblings.
    roots: HashMap<CacheSalt, BlockId>,
    version: u64,
}

#[derive(Debug)]
struct Entry {
    hash: BlockHash,
    salt: CacheSalt,
    tokens: Box<[TokenId]>,
    parent: Option<BlockId>,
    first_child: Option<BlockId>,
    prev_sibling: Option<BlockId>,
    next_sibling: Option<BlockId>,
}

impl PrefixIndex {
    pub(crate) fn new(num_blocks: u32, block_size: BlockSize) -> Self {
        let entries = (0..num_blocks).map(|_| None).collect();
        Self { block_size, entries, by_hash: HashMap::new(), roots: HashMap::new(), version: 0 }
    }

    /// Whether `block` can be found.
    #[must_use]
    pub fn contains(&self, block: BlockId) -> bool {
        self.entries[block.0 as usize].is_some()
    }

    /// Number of blocks that can be found.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether nothing can be found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Grows with every change, so that a caller knows whether an earlier answer may be stale.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many leading `hashes` are here. An estimate: nothing is confirmed.
    #[must_use]
    pub fn count_leading(&self, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|hash| self.by_hash.contains_key(hash)).count()
    }

    /// The leading full blocks of `sequence` that are here, each confirmed.
    #[must_use]
    pub fn match_full_blocks(&self, sequence: HashedTokens<'_>) -> Vec<BlockId> {
        let mut parent = None;
        let blocks = sequence.tokens.chunks_exact(self.block_size.as_usize()).zip(sequence.hashes);
        blocks
            .map_while(|(tokens, &hash)| {
                parent = self.find(sequence.salt, parent, hash, tokens);
                parent
            })
            .collect()
    }

    /// What is here of the first `max_tokens` tokens of `sequence`, which must be all or fewer than its tokens.
    #[must_use]
    pub fn match_prefix(&self, sequence: HashedTokens<'_>, max_tokens: usize) -> PrefixMatch {
        let block_size = self.block_size.as_usize();
        let blocks = self.match_full_blocks(HashedTokens { tokens: &sequence.tokens[..max_tokens], ..sequence });
        let num_tokens = blocks.len() * block_size;
        let rest = &sequence.tokens[num_tokens..max_tokens];
        let parent = blocks.last().copied();
        let whole = || {
            let tokens = sequence.tokens.get(num_tokens..num_tokens + block_size)?;
            let block = self.find(sequence.salt, parent, *sequence.hashes.get(blocks.len())?, tokens)?;
            (!rest.is_empty()).then_some(PartialMatch { block, num_tokens: rest.len() })
        };
        let partial = whole().or_else(|| self.match_partial(sequence.salt, parent, rest));
        PrefixMatch { blocks, num_tokens, partial }
    }

    /// The block below `parent` that shares most leading tokens with `tokens`, the newest of equals.
    fn match_partial(&self, salt: CacheSalt, parent: Option<BlockId>, tokens: &[TokenId]) -> Option<PartialMatch> {
        let first = match parent {
            Some(parent) => self.entry(parent).first_child,
            None => self.roots.get(&salt).copied(),
        };
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

    /// The indexed block that holds `tokens` below `parent`.
    fn find(&self, salt: CacheSalt, parent: Option<BlockId>, hash: BlockHash, tokens: &[TokenId]) -> Option<BlockId> {
        let &block = self.by_hash.get(&hash)?;
        let entry = self.entry(block);
        (entry.salt == salt && entry.parent == parent && *entry.tokens == *tokens).then_some(block)
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
        let parent = parent.map(ExactBlock::id);
        if let Some(duplicate) = self.find(sequence.salt, parent, hash, tokens) {
            return Insertion::Duplicate(duplicate);
        }
        if self.by_hash.contains_key(&hash) || parent.is_some_and(|parent| !self.contains(parent)) {
            return Insertion::Refused;
        }
        self.link(block.id(), NewEntry { hash, salt: sequence.salt, tokens, parent });
        Insertion::Stored
    }

    fn link(&mut self, block: BlockId, new: NewEntry<'_>) {
        let NewEntry { hash, salt, tokens, parent } = new;
        let next_sibling = match parent {
            Some(parent) => self.entry_mut(parent).first_child.replace(block),
            None => self.roots.insert(salt, block),
        };
        if let Some(next) = next_sibling {
            self.entry_mut(next).prev_sibling = Some(block);
        }
        let entry = Entry { hash, salt, tokens: tokens.into(), parent, first_child: None, prev_sibling: None, next_sibling };
        let before = self.entries[block.0 as usize].replace(entry);
        assert!(before.is_none(), "{block:?} is indexed already");
        self.by_hash.insert(hash, block);
        self.version += 1;
    }

    /// Forgets `block` and everything below it; returns what was forgotten, `block` first.
    pub(crate) fn remove_subtree(&mut self, block: BlockId) -> Vec<BlockId> {
        self.unlink(block);
        let mut removed = vec![block];
        let mut at = 0;
        while let Some(&block) = removed.get(at) {
            let entry = self.entries[block.0 as usize].take().expect("a child of an indexed block is indexed");
            self.by_hash.remove(&entry.hash);
            removed.extend(std::iter::successors(entry.first_child, |&child| self.entry(child).next_sibling));
            at += 1;
        }
        self.version += 1;
        removed
    }

    /// Takes `block` out of the list of its siblings.
    fn unlink(&mut self, block: BlockId) {
        let &Entry { salt, parent, prev_sibling, next_sibling, .. } = self.entry(block);
        if let Some(next) = next_sibling {
            self.entry_mut(next).prev_sibling = prev_sibling;
        }
        match (prev_sibling, parent, next_sibling) {
            (Some(prev), _, _) => self.entry_mut(prev).next_sibling = next_sibling,
            (None, Some(parent), _) => self.entry_mut(parent).first_child = next_sibling,
            (None, None, Some(next)) => drop(self.roots.insert(salt, next)),
            (None, None, None) => drop(self.roots.remove(&salt)),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.entries.iter_mut().for_each(|entry| *entry = None);
        self.by_hash.clear();
        self.roots.clear();
        self.version += 1;
    }

    /// Panics unless all links agree.
    pub(crate) fn check_invariants(&self) {
        let mut num_entries = 0;
        for (i, entry) in self.entries.iter().enumerate().filter_map(|(i, entry)| Some((i, entry.as_ref()?))) {
            let block = BlockId(i as u32);
            num_entries += 1;
            assert_eq!(self.by_hash.get(&entry.hash), Some(&block), "{block:?} is not found by its hash");
            assert_eq!(entry.tokens.len(), self.block_size.as_usize(), "{block:?} is not full");
            if let Some(next) = entry.next_sibling {
                let next = self.entry(next);
                assert_eq!(next.prev_sibling, Some(block), "siblings of {block:?} disagree");
                assert_eq!((next.parent, next.salt), (entry.parent, entry.salt), "siblings of {block:?} are not siblings");
            }
            if entry.prev_sibling.is_none() {
                let first = match entry.parent {
                    Some(parent) => self.entry(parent).first_child,
                    None => self.roots.get(&entry.salt).copied(),
                };
                assert_eq!(first, Some(block), "{block:?} is not the first child of its parent");
            }
        }
        assert_eq!(self.by_hash.len(), num_entries, "a hash leads nowhere");
    }

    fn entry(&self, block: BlockId) -> &Entry {
        self.entries[block.0 as usize].as_ref().expect("links lead to indexed blocks")
    }

    fn entry_mut(&mut self, block: BlockId) -> &mut Entry {
        self.entries[block.0 as usize].as_mut().expect("links lead to indexed blocks")
    }
}

#[derive(Clone, Copy)]
struct NewEntry<'a> {
    hash: BlockHash,
    salt: CacheSalt,
    tokens: &'a [TokenId],
    parent: Option<BlockId>,
}

fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use tokens::hash_full_blocks;

    use super::*;

    const SIZE: BlockSize = BlockSize::new(2).unwrap();

    fn ids(text: &str) -> Vec<TokenId> {
        text.bytes().map(|byte| TokenId(byte.into())).collect()
    }

    /// An index in which every sequence of `stored`, `salt:text`, got its own new blocks for what was not there.
    fn index_of(stored: &str) -> PrefixIndex {
        let mut index = PrefixIndex::new(32, SIZE);
        let mut next = 0;
        for word in stored.split_whitespace() {
            let (salt, text) = word.split_once(':').unwrap();
            let (salt, tokens) = (CacheSalt(salt.parse().unwrap()), ids(text));
            let hashes = hash_full_blocks(salt, &tokens, SIZE);
            let sequence = HashedTokens { salt, tokens: &tokens, hashes: &hashes };
            let mut chain: Vec<_> = index.match_full_blocks(sequence).into_iter().map(ExactBlock::new).collect();
            for idx in chain.len()..hashes.len() {
                let block = ExactBlock::new(BlockId(next));
                next += 1;
                assert_eq!(index.insert(&block, chain.last(), sequence, idx), Insertion::Stored);
                chain.push(block);
            }
        }
        index.check_invariants();
        index
    }

    /// `expected`: matched block ids, then the partly matched one as `block+tokens`.
    #[track_caller]
    fn check(index: &PrefixIndex, salt: u64, text: &str, max_tokens: usize, expected: &str) {
        let (salt, tokens) = (CacheSalt(salt), ids(text));
        let hashes = hash_full_blocks(salt, &tokens, SIZE);
        let found = index.match_prefix(HashedTokens { salt, tokens: &tokens, hashes: &hashes }, max_tokens);
        let blocks = found.blocks.iter().map(|block| block.0.to_string());
        let partial = found.partial.map(|partial| format!("{}+{}", partial.block.0, partial.num_tokens));
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
    fn a_collision_is_a_miss() {
        let mut index = PrefixIndex::new(4, SIZE);
        let (a, b) = (ids("ab"), ids("xy"));
        let hashes = [BlockHash(7)];
        let (block, other) = (ExactBlock::new(BlockId(0)), ExactBlock::new(BlockId(1)));
        let stored = HashedTokens { salt: CacheSalt(0), tokens: &a, hashes: &hashes };
        let collides = HashedTokens { salt: CacheSalt(0), tokens: &b, hashes: &hashes };
        assert_eq!(index.insert(&block, None, stored, 0), Insertion::Stored);
        assert_eq!(index.match_full_blocks(collides), []);
        assert_eq!(index.insert(&other, None, collides, 0), Insertion::Refused);
        assert_eq!(index.match_full_blocks(stored), [BlockId(0)]);
    }

    #[test]
    fn equal_hash_and_tokens_in_another_scope_are_a_miss() {
        let mut index = PrefixIndex::new(4, SIZE);
        let (tokens, hashes) = (ids("ab"), [BlockHash(7)]);
        let stored = HashedTokens { salt: CacheSalt(0), tokens: &tokens, hashes: &hashes };
        assert_eq!(index.insert(&ExactBlock::new(BlockId(0)), None, stored, 0), Insertion::Stored);
        assert_eq!(index.match_full_blocks(HashedTokens { salt: CacheSalt(1), ..stored }), []);
    }

    #[test]
    fn equal_hash_and_tokens_behind_another_parent_are_a_miss() {
        let mut index = PrefixIndex::new(4, SIZE);
        let (first, second) = (ids("abcd"), ids("xycd"));
        let chain = [BlockHash(1), BlockHash(7)];
        let other_chain = [BlockHash(2), BlockHash(7)];
        let blocks: Vec<_> = (0..3).map(|i| ExactBlock::new(BlockId(i))).collect();
        let stored = HashedTokens { salt: CacheSalt(0), tokens: &first, hashes: &chain };
        let collides = HashedTokens { salt: CacheSalt(0), tokens: &second, hashes: &other_chain };
        assert_eq!(index.insert(&blocks[0], None, stored, 0), Insertion::Stored);
        assert_eq!(index.insert(&blocks[1], Some(&blocks[0]), stored, 1), Insertion::Stored);
        assert_eq!(index.insert(&blocks[2], None, collides, 0), Insertion::Stored);
        assert_eq!(index.match_full_blocks(collides), [BlockId(2)]);
    }

    #[test]
    fn a_removed_block_takes_its_descendants_with_it() {
        let mut index = index_of("0:abcdef 0:abxy 0:zz");
        assert_eq!(index.remove_subtree(BlockId(1)), [BlockId(1), BlockId(2)]);
        index.check_invariants();
        check(&index, 0, "abcdef", 6, "0");
        assert_eq!(index.remove_subtree(BlockId(0)), [BlockId(0), BlockId(3)]);
        index.check_invariants();
        check(&index, 0, "abxy", 4, "");
        check(&index, 0, "zz", 2, "4");
    }
}
