//! Reference of the pool, written without regard for speed.

use super::*;

/// Slow model of the pool: paths are compared scope by scope and token by token, the free queue is a `Vec`.
pub(super) struct Reference {
    pub(super) holders: Vec<u32>,
    pub(super) free: Vec<u32>,
    pub(super) owners: Vec<Option<BlockOwner>>,
    pub(super) last_used: Vec<u64>,
    pub(super) quotas: BTreeMap<TenantId, usize>,
    pub(super) now: u64,
    pub(super) ttl: u64,
    /// Findable content.
    pub(super) content: HashMap<Path, At>,
    /// Content of the host tier, oldest first.
    pub(super) copies: Vec<HostCopy>,
    pub(super) num_places: usize,
    /// Number of places fetched from since the last step.
    pub(super) num_leaving: usize,
    pub(super) min_depth: usize,
    /// True if sequences free blocks before those that follow them.
    pub(super) has_holes: bool,
}

/// Scope of each block from the start of the sequence on, and the tokens to the end of the last.
pub(super) type Path = (Vec<Scope>, Vec<TokenId>);

/// Location of content. The place within the host does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Device(u32),
    Host,
}

pub(super) struct HostCopy {
    pub(super) path: Path,
    pub(super) owner: BlockOwner,
    pub(super) last_used: u64,
    pub(super) is_reserved: bool,
}

pub(super) fn follows((scopes, tokens): &Path, (other_scopes, other_tokens): &Path) -> bool {
    scopes.starts_with(other_scopes) && tokens.starts_with(other_tokens)
}

impl Reference {
    pub(super) fn new(num_blocks: u32, quotas: &BTreeMap<TenantId, usize>, ttl: u64, num_places: usize) -> Self {
        let n = num_blocks as usize;
        let (holders, owners, last_used) = (vec![0; n], vec![None; n], vec![0; n]);
        let (free, quotas) = ((0..num_blocks).collect(), quotas.clone());
        let (content, copies) = Default::default();
        let (num_leaving, min_depth, has_holes) = (0, 0, false);
        Self {
            holders,
            free,
            owners,
            last_used,
            quotas,
            now: 0,
            ttl,
            content,
            copies,
            num_places,
            num_leaving,
            min_depth,
            has_holes,
        }
    }

    pub(super) fn copy_of(&self, path: &Path) -> &HostCopy {
        self.copies.iter().find(|copy| copy.path == *path).expect("what is found in the host has a copy there")
    }

    pub(super) fn is_expired(&self, path: &Path) -> bool {
        let last_used = match self.content[path] {
            At::Device(block) if self.holders[block as usize] > 0 => return false,
            At::Device(block) => self.last_used[block as usize],
            At::Host => self.copy_of(path).last_used,
        };
        self.now - last_used > self.ttl
    }

    /// Returns the longest path that begins with some blocks of the public scope, the fewest of equals, as far as it has not expired and
    /// its owners have room for the fetches.
    pub(super) fn find(&self, scope: Scope, tokens: &[TokenId]) -> Vec<Path> {
        let own_only = self.follow(Vec::new(), scope, tokens);
        let public = self.follow(Vec::new(), PUBLIC, tokens);
        let mixed = if public.is_empty() { public } else { self.follow(public, scope, tokens) };
        let mut longest = if mixed.len() > own_only.len() { mixed } else { own_only };
        longest.truncate(longest.iter().take_while(|path| !self.is_expired(path)).count());
        let fits = |len: &usize| {
            let paths: Vec<_> = longest[..*len].iter().collect();
            self.quotas.keys().all(|&tenant| self.is_within_quota(tenant, &paths, 0))
        };
        let num_usable = (0..=longest.len()).take_while(fits).count().saturating_sub(1);
        longest.truncate(num_usable);
        longest
    }

    pub(super) fn follow(&self, mut paths: Vec<Path>, scope: Scope, tokens: &[TokenId]) -> Vec<Path> {
        while 2 * (paths.len() + 1) <= tokens.len() {
            let mut scopes = paths.last().map_or(Vec::new(), |(scopes, _)| scopes.clone());
            scopes.push(scope);
            let path = (scopes, tokens[..2 * (paths.len() + 1)].to_vec());
            if !self.content.contains_key(&path) {
                break;
            }
            paths.push(path);
        }
        paths
    }

    pub(super) fn path_of(&self, block: u32) -> Option<Path> {
        self.content.iter().find(|&(_, &at)| at == At::Device(block)).map(|(path, _)| path.clone())
    }

    pub(super) fn owner_of(&self, path: &Path) -> BlockOwner {
        match self.content[path] {
            At::Device(block) => self.owners[block as usize].expect("it was filled"),
            At::Host => self.copy_of(path).owner,
        }
    }

    pub(super) fn take(&mut self, block: u32) {
        self.free.retain(|&free| free != block);
        self.holders[block as usize] += 1;
    }

    /// Holds the content of `paths`, fetched to `blocks` as far as it is in the host.
    pub(super) fn hold(&mut self, paths: &[Path], blocks: &[u32]) {
        let before: Vec<_> = paths.iter().map(|path| self.content[path]).collect();
        for (path, &at) in paths.iter().zip(&before) {
            match at {
                At::Device(block) => self.take(block),
                At::Host => {
                    let copy = self.copies.iter_mut().find(|copy| copy.path == *path).expect("it has a copy");
                    copy.is_reserved = true;
                }
            }
        }
        for ((path, at), &block) in paths.iter().zip(before).zip(blocks) {
            match at {
                At::Device(held) => assert_eq!(block, held, "what was found is shared"),
                At::Host => match self.copies.iter().position(|copy| copy.path == *path && copy.is_reserved) {
                    None => self.take(block), // Fetched a moment ago.
                    Some(at) => {
                        let owner = self.copies[at].owner;
                        self.take_new(owner, block);
                        self.copies.retain(|copy| !(copy.path == *path && copy.is_reserved));
                        self.num_leaving += 1;
                        self.content.entry(path.clone()).and_modify(|at| *at = At::Device(block));
                    }
                },
            }
        }
    }

    pub(super) fn num_used(&self, tenant: TenantId) -> usize {
        let is_used = |block: u32| self.holders[block as usize] > 0 || self.path_of(block).is_some();
        (0..self.holders.len() as u32).filter(|&block| self.is_of(tenant, block) && is_used(block)).count()
    }

    pub(super) fn is_of(&self, tenant: TenantId, block: u32) -> bool {
        self.owners[block as usize].is_some_and(|owner| owner.tenant == tenant)
    }

    /// Checks that `num_new` blocks of `tenant` are within its quota when `kept` stay, are fetched where they must be, and all held ones
    /// stay.
    pub(super) fn is_within_quota(&self, tenant: TenantId, kept: &[&Path], num_new: usize) -> bool {
        let is_kept = |block: u32| kept.iter().any(|path| self.content[*path] == At::Device(block));
        let stays = |block: u32| self.holders[block as usize] > 0 || is_kept(block);
        let num_fixed = (0..self.holders.len() as u32).filter(|&block| self.is_of(tenant, block) && stays(block)).count();
        let is_fetched = |path: &&&Path| self.content[**path] == At::Host && self.owner_of(path).tenant == tenant;
        let num_fetched = kept.iter().filter(is_fetched).count();
        self.quotas.get(&tenant).is_none_or(|&quota| num_fixed + num_fetched + num_new <= quota)
    }

    /// Gives `block` to `owner`: its oldest own one if its quota is full, else an empty one if there is any, else the oldest of all.
    pub(super) fn take_new(&mut self, owner: BlockOwner, block: u32) {
        let is_cached = |block: u32| self.path_of(block).is_some();
        let is_full = self.quotas.get(&owner.tenant).is_some_and(|&quota| self.num_used(owner.tenant) >= quota);
        if is_full || self.free.iter().all(|&block| is_cached(block)) {
            let mut candidates = self.free.iter().copied().filter(|&block| is_cached(block));
            let oldest = candidates.find(|&block| !is_full || self.is_of(owner.tenant, block));
            assert_eq!(Some(block), oldest, "another block was to be given up");
        } else {
            assert!(!is_cached(block), "a cached block was given up though another is empty");
        }
        let num_gone = self.path_of(block).map_or(0, |path| self.evict(&path, block));
        let is_in_order = self.quotas.is_empty() && self.num_places == 0 && !self.has_holes;
        assert!(num_gone <= 1 || !is_in_order, "a block was given up before one that follows it");
        self.take(block);
        self.owners[block as usize] = Some(owner);
    }

    /// Moves the content of `block` to the host if it is deep enough or has children and its owner has a place there, else drops it;
    /// returns how many blocks are no longer findable.
    pub(super) fn evict(&mut self, path: &Path, block: u32) -> usize {
        let is_followed = self.content.keys().any(|other| other != path && follows(other, path));
        let is_wanted = self.num_places > 0 && !self.is_expired(path) && (path.0.len() > self.min_depth || is_followed);
        let owner = self.owners[block as usize].expect("it was filled");
        let num_before = self.content.len();
        if is_wanted && self.make_place(owner.tenant) && self.content.contains_key(path) {
            self.content.insert(path.clone(), At::Host);
            let last_used = self.last_used[block as usize];
            self.copies.push(HostCopy { path: path.clone(), owner, last_used, is_reserved: false });
        } else {
            self.forget(path);
        }
        num_before - self.content.len()
    }

    /// Evicts an old copy if needed; returns false if there is none to evict.
    pub(super) fn make_place(&mut self, tenant: TenantId) -> bool {
        let limit = self.quotas.get(&tenant).map_or(usize::MAX, |quota| (quota * self.num_places).div_ceil(self.holders.len()));
        let num_own = self.copies.iter().filter(|copy| copy.owner.tenant == tenant).count();
        let is_full = num_own >= limit;
        if !is_full && self.copies.len() + self.num_leaving < self.num_places {
            return true;
        }
        let mut candidates = self.copies.iter().filter(|copy| !copy.is_reserved && (!is_full || copy.owner.tenant == tenant));
        let Some(oldest) = candidates.next().map(|copy| copy.path.clone()) else { return false };
        self.forget(&oldest);
        true
    }

    /// Makes the content at `path` and everything below it unfindable.
    pub(super) fn forget(&mut self, path: &Path) -> usize {
        let num_before = self.content.len();
        self.content.retain(|other, _| !follows(other, path));
        self.copies.retain(|copy| copy.is_reserved || !follows(&copy.path, path));
        num_before - self.content.len()
    }

    pub(super) fn release(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            self.holders[block as usize] -= 1;
            if self.holders[block as usize] == 0 {
                self.last_used[block as usize] = self.now;
                self.free.push(block);
            }
        }
    }

    /// Makes `blocks` findable from the first one on that is not; returns those that were not findable on the device before. A path of
    /// other scopes to the same tokens is a collision.
    pub(super) fn cache(
        &mut self,
        scope: Scope,
        tokens: &[TokenId],
        blocks: &mut [u32],
        num_cached: &mut usize,
    ) -> Vec<(Path, u32)> {
        let mut stored = Vec::new();
        for i in *num_cached..blocks.len() {
            let end = 2 * (i + 1);
            let parent = match i {
                0 => Some((Vec::new(), Vec::new())),
                i => self.path_of(blocks[i - 1]),
            };
            let Some((mut scopes, _)) = parent else { break };
            scopes.push(scope);
            let path = (scopes, tokens[..end].to_vec());
            let collides = |other: &Path| *other != path && other.1 == path.1 && other.0.last() == Some(&scope);
            if self.content.keys().any(collides) {
                break;
            }
            if let Some(&At::Device(held)) = self.content.get(&path) {
                self.take(held);
                let own = std::mem::replace(&mut blocks[i], held);
                self.release(&[own]);
            } else {
                self.copies.retain(|copy| copy.path != path);
                self.content.insert(path.clone(), At::Device(blocks[i]));
                stored.push((path, blocks[i]));
            }
            *num_cached = i + 1;
        }
        stored
    }

    pub(super) fn erase(&mut self, is_erased: impl Fn(&BlockOwner) -> bool) -> usize {
        let all: Vec<_> = self.content.keys().filter(|path| is_erased(&self.owner_of(path))).cloned().collect();
        all.iter().map(|path| self.forget(path)).sum()
    }

    pub(super) fn expire(&mut self, max_blocks: usize) -> usize {
        let mut num_expired = 0;
        while num_expired < max_blocks {
            let on_device = self.free.iter().find_map(|&block| self.path_of(block));
            let in_host = self.copies.first().map(|copy| copy.path.clone());
            let Some(path) = on_device.into_iter().chain(in_host).find(|path| self.is_expired(path)) else { break };
            num_expired += self.forget(&path);
        }
        num_expired
    }
}
