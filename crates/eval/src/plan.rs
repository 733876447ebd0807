//! Selection of requests to compare: those with a donor, within the length limit, up to a number of each kind, and one share of them.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::prompt::Prompt;
use super::workload::Record;

/// Recipients by donor, donors in the order of their first recipient.
#[derive(Debug, Default)]
pub struct Plan {
    /// Donors with their recipients.
    pub groups: Vec<Group>,
    /// Requests left out because they or their donors are too long.
    pub num_too_long: usize,
}

/// Donor with its recipients.
#[derive(Debug)]
pub struct Group {
    /// Donor, computed before the recipients.
    pub donor: Prompted,
    /// Recipients of this share of the plan.
    pub recipients: Vec<Recipient>,
    /// Recipients in the whole plan.
    pub num_recipients: usize,
}

/// Request with its prompt as tokens.
#[derive(Clone, Debug)]
pub struct Prompted {
    /// Request.
    pub record: Arc<Record>,
    /// Prompt.
    pub prompt: Arc<Prompt>,
}

/// Request that is compared.
#[derive(Debug)]
pub struct Recipient {
    /// Position among all recipients of the plan.
    pub index: usize,
    /// Name of its file.
    pub file: String,
    /// Kind of the request.
    pub workload: String,
    /// Request with its prompt.
    pub request: Prompted,
}

/// Limits of the plan.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum recipients of one kind.
    pub per_workload: Option<usize>,
    /// Maximum tokens of a prompt and of its donor's.
    pub max_prompt_tokens: usize,
}

/// One of several equal shares of the work, for as many processes. Written `i/n`, from `1/n` to `n/n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

/// Function that encodes a request as tokens.
type Encode<'a> = &'a dyn Fn(&Record) -> anyhow::Result<Prompt>;

impl Plan {
    /// Plans the recipients of `files`, given by name.
    ///
    /// # Errors
    /// If a donor is not in its recipient's file, a prompt cannot be encoded, or nothing is left to compare.
    pub fn new(files: Vec<(String, Vec<Record>)>, limits: Limits, encode: Encode<'_>) -> anyhow::Result<Self> {
        let mut plan = Self::default();
        let mut counts = BTreeMap::new();
        for (file, records) in files {
            let mut prompts = Prompts::new(records, encode);
            for recipient in prompts.recipients() {
                plan.add(&file, &recipient, &mut prompts, limits, &mut counts)?;
            }
        }
        if plan.groups.is_empty() {
            bail!("no workload has a request with a donor_id and a prompt that fits");
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        file: &str,
        record: &Arc<Record>,
        prompts: &mut Prompts<'_>,
        limits: Limits,
        counts: &mut BTreeMap<String, usize>,
    ) -> anyhow::Result<()> {
        let workload = workload_of(record);
        let count = counts.entry(workload.clone()).or_default();
        if limits.per_workload.is_some_and(|limit| *count >= limit) {
            return Ok(());
        }
        let donor = prompts.donor_of(record)?;
        let request = prompts.of(record)?;
        if [&donor, &request].iter().any(|prompted| prompted.prompt.token_ids.len() > limits.max_prompt_tokens) {
            self.num_too_long += 1;
            return Ok(());
        }
        *count += 1;
        let index = self.num_recipients();
        let recipient = Recipient { index, file: file.to_owned(), workload, request };
        match self.groups.iter_mut().find(|group| Arc::ptr_eq(&group.donor.record, &donor.record)) {
            Some(group) => {
                group.num_recipients += 1;
                group.recipients.push(recipient);
            }
            None => self.groups.push(Group { donor, recipients: vec![recipient], num_recipients: 1 }),
        }
        Ok(())
    }

    /// Counts recipients of this share.
    pub fn num_recipients(&self) -> usize {
        self.groups.iter().map(|group| group.recipients.len()).sum()
    }

    /// Keeps one share: neighbours stay together, so that few donors are computed in two shares.
    pub fn keep(&mut self, shard: Shard) {
        let tokens = |recipient: &Recipient| recipient.request.prompt.token_ids.len();
        let total: usize = self.groups.iter().flat_map(|group| &group.recipients).map(tokens).sum();
        let mut before = 0;
        for group in &mut self.groups {
            group.recipients.retain(|recipient| {
                let share = before * shard.count / total.max(1);
                before += tokens(recipient);
                share == shard.index
            });
        }
        self.groups.retain(|group| !group.recipients.is_empty());
    }
}

/// Requests of a file, each encoded once, when needed.
struct Prompts<'a> {
    encode: Encode<'a>,
    records: Vec<Arc<Record>>,
    by_id: BTreeMap<String, Arc<Record>>,
    encoded: BTreeMap<String, Arc<Prompt>>,
}

impl<'a> Prompts<'a> {
    fn new(records: Vec<Record>, encode: Encode<'a>) -> Self {
        let records: Vec<_> = records.into_iter().map(Arc::new).collect();
        let by_id = records.iter().map(|record| (record.id.clone(), Arc::clone(record))).collect();
        Self { encode, records, by_id, encoded: BTreeMap::new() }
    }

    fn recipients(&self) -> Vec<Arc<Record>> {
        self.records.iter().filter(|record| record.donor_id.is_some()).cloned().collect()
    }

    fn donor_of(&mut self, record: &Record) -> anyhow::Result<Prompted> {
        let id = record.donor_id.as_deref().unwrap_or_default();
        let donor = self.by_id.get(id).with_context(|| format!("{} has the donor {id}, which is not there", record.id))?;
        let donor = Arc::clone(donor);
        self.of(&donor)
    }

    fn of(&mut self, record: &Arc<Record>) -> anyhow::Result<Prompted> {
        let prompt = match self.encoded.get(&record.id) {
            Some(prompt) => Arc::clone(prompt),
            None => {
                let prompt = Arc::new((self.encode)(record).with_context(|| record.id.clone())?);
                self.encoded.insert(record.id.clone(), Arc::clone(&prompt));
                prompt
            }
        };
        Ok(Prompted { record: Arc::clone(record), prompt })
    }
}

/// Returns the workload and the last part of the request's id: `w1_rag_reorder/swap3`. Drops a count after one letter: `w3/t012` is `w3/t`.
fn workload_of(record: &Record) -> String {
    let part = record.id.rsplit('/').next().unwrap_or_default();
    let stem = part.trim_end_matches(|c: char| c.is_ascii_digit());
    let kind = if stem.chars().count() == 1 { stem } else { part };
    format!("{}/{kind}", record.workload)
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index: index - 1, count }),
            _ => Err(format!("{text:?} is no share like 1/4")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::process::Command;

    use tokens::TokenId;

    use super::*;
    use crate::workload::read_scored;

    /// Makes records `id` or `id<donor`, of the workload before the first `/`, with one token for each letter of the id.
    fn records(text: &str) -> Vec<Record> {
        let record = |text: &str| {
            let (id, donor) = text.split_once('<').map_or((text, None), |(id, donor)| (id, Some(donor.to_owned())));
            let workload = id.split('/').next().unwrap().to_owned();
            Record { id: id.to_owned(), workload, donor_id: donor, ..Record::default() }
        };
        text.split(' ').map(record).collect()
    }

    fn plan(text: &str, per_workload: Option<usize>, max_prompt_tokens: usize) -> anyhow::Result<Plan> {
        let encode = |record: &Record| {
            let token_ids = record.id.bytes().map(|byte| TokenId(byte.into())).collect();
            Ok(Prompt::plain(token_ids))
        };
        Plan::new(vec![("f".to_owned(), records(text))], Limits { per_workload, max_prompt_tokens }, &encode)
    }

    fn print(plan: &Plan) -> String {
        let group = |group: &Group| {
            let ids: Vec<_> = group.recipients.iter().map(|recipient| recipient.request.record.id.as_str()).collect();
            format!("{}>{}", group.donor.record.id, ids.join("+"))
        };
        plan.groups.iter().map(group).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn recipients_stand_with_their_donor_up_to_the_limit_of_their_kind() {
        let plan = plan("w/a w/q1<w/a w/x<w/a w/b w/q2<w/b w/q3<w/a", Some(2), 99).unwrap();
        assert_eq!(print(&plan), "w/a>w/q1+w/x w/b>w/q2");
        let kinds: Vec<_> = plan.groups[0].recipients.iter().map(|recipient| recipient.workload.as_str()).collect();
        assert_eq!(kinds, ["w/q", "w/x"]);
        assert_eq!(plan.groups[1].recipients[0].index, 2);
    }

    #[test]
    fn long_prompts_are_left_out_before_the_limit_counts() {
        let plan = plan("w/a w/bbbb w/qqqq<w/a w/q2<w/bbbb w/q3<w/a", Some(1), 5).unwrap();
        assert_eq!((print(&plan).as_str(), plan.num_too_long), ("w/a>w/q3", 2));
    }

    #[test]
    fn kinds_are_named_by_the_end_of_the_id() {
        let kind = |workload: &str, id: &str| {
            workload_of(&Record { id: id.to_owned(), workload: workload.to_owned(), ..Record::default() })
        };
        assert_eq!(kind("w1", "w1/0/reorder1"), "w1/reorder1");
        assert_eq!(kind("w3", "w3/airline/t012"), "w3/t");
        assert_eq!(kind("w", "x"), "w/x");
    }

    #[test]
    fn shares_are_disjoint_and_make_up_the_whole() {
        let text = "w/a w/q1<w/a w/q2<w/a w/q3<w/a w/b w/q4<w/b w/q5<w/b w/q6<w/b";
        let share = |shard: &str| {
            let mut plan = plan(text, None, 99).unwrap();
            plan.keep(shard.parse().unwrap());
            print(&plan)
        };
        assert_eq!(share("1/1"), print(&plan(text, None, 99).unwrap()));
        assert_eq!([share("1/3"), share("2/3"), share("3/3")], ["w/a>w/q1+w/q2", "w/a>w/q3 w/b>w/q4", "w/b>w/q5+w/q6"]);
        let mut half = plan(text, None, 99).unwrap();
        half.keep("2/3".parse().unwrap());
        assert_eq!(half.groups[0].num_recipients, 3, "a donor's cost is shared by all of its recipients");
        for bad in ["0/2", "3/2", "1", "a/b", "1/0"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_workload_without_recipients_is_refused() {
        let refusal = |text: &str| plan(text, None, 99).err().unwrap().to_string();
        assert!(refusal("w/a").starts_with("no workload has a request"));
        assert_eq!(refusal("w/a<w/gone"), "w/a has the donor w/gone, which is not there");
    }

    /// Writes files in the format that `benches/quality/suites.py` reads, with enough lines for each suite.
    fn write_data(folder: &Path) {
        let write = |name: &str, lines: &mut dyn Iterator<Item = serde_json::Value>| {
            let mut file = std::fs::File::create(folder.join(name)).unwrap();
            lines.for_each(|line| writeln!(file, "{line}").unwrap());
        };
        let text = |i: usize| format!("Line {i} of a speech. It goes on for a while.\n").repeat(600);
        write("longcontext_presidential.jsonl", &mut (0..3).map(|i| serde_json::json!({"id": i.to_string(), "text": text(i)})));
        let needle = |i: usize| {
            let (needle, answer) = (format!("The archive door code for the Town{i} office is 3000{i}."), format!("3000{i}"));
            serde_json::json!({"id": i.to_string(), "needle": needle, "question": "Which code?", "answer": answer})
        };
        write("longcontext_needles.jsonl", &mut (0..3).map(needle));
        let problem = |i: usize| serde_json::json!({"id": i.to_string(), "question": format!("{i}?"), "answer": "1 + 1 = <<1+1=2>>2\n#### 2", "final": "2"});
        write("gsm8k.jsonl", &mut (0..60).map(problem));
    }

    #[test]
    fn the_suites_are_workloads_with_known_measures() {
        let data = tempfile::tempdir().unwrap();
        write_data(data.path());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/quality/suites.py");
        let output = Command::new("python3").arg(script).arg(data.path()).args(["all", "2"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = data.path().join("suites.jsonl");
        std::fs::write(&path, output.stdout).unwrap();
        let files = vec![read_scored(&path).unwrap()];
        let bytes = |record: &Record| {
            let text: String = record.messages.iter().map(|message| message.content.as_str()).collect();
            Ok(Prompt::plain(text.bytes().map(|byte| TokenId(byte.into())).collect()))
        };
        let limits = Limits { per_workload: None, max_prompt_tokens: usize::MAX };
        let plan = Plan::new(files, limits, &bytes).unwrap();
        // Of each document: two questions at each of three distances, six instructions, one canary; and one problem. Five kinds of rows and
        // sentences that something else governs.
        assert_eq!((plan.groups.len(), plan.num_recipients()), (2 * (3 + 6 + 1 + 1 + 5), 2 * (6 + 6 + 1 + 1 + 5)));
        for group in &plan.groups {
            let recipients: Vec<_> = group.recipients.iter().map(|recipient| &recipient.request.record).collect();
            let differs = recipients.iter().all(|record| record.messages != group.donor.record.messages);
            assert!(differs, "{} has a recipient that asks the same", group.donor.record.id);
            let is_canary = group.donor.record.workload == "canary";
            assert_eq!(recipients.iter().any(|record| record.tenant != group.donor.record.tenant), is_canary);
        }
    }
}
