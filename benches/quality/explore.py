#!/usr/bin/env python3
"""How far answers over reused KV lie from full computation, by the rule that chooses what is recomputed.

usage: explore.py --data DIR --model FILE.gguf [--per-kind 8] [--max-tokens 7000] [--only NAME ...] [--json FILE]

DIR holds requests as .jsonl (id, donor_id, workload, messages): every request with a donor is answered over the donor's KV. An
f32 decoder of its own (Llama and Qwen2 files, torch, tf32 off) runs any subset of rows from any layer on over a partly stale cache.
Protocol: chat template of the file; spans of at least 64 equal tokens by longest match; keys turned to their new positions; the first 16
tokens of a moved span and the last 16 of the prompt always computed; the model is teacher-forced over its own full-prefill greedy
answer of at most 48 tokens; KL(full || reuse) in nats. `work` is the share of (token, layer) pairs computed, all passes counted.
Needs torch, transformers, gguf and numpy; a GPU for prompts of thousands of tokens.
"""

import argparse
import json
import math
import pathlib
import zlib

import numpy
import torch
import torch.nn.functional as F

RUN_START, TAIL, MIN_SPAN, ANSWER, DEEPEST_CHECK = 16, 16, 64, 48, 4

# Score of a token from named vectors over the prompt: dvN, dkN norms of the deviations of V and K at layer N, vnN norm of V, daN the L1
# norm of the deviation of V; mAN, mFN attention received at layer N from all rows or from the fresh rows; two_pass: attention received
# from the fresh rows run alone over the stale cache, mean of all layers; donor: the same inside the donor's own prefill, which can be
# kept with it; random. `layer` is the first layer that is not dense, `r` the chosen share of the prompt, `tau` the residual
# sum of the score, in units of the mean squared V, at which choosing stops, `drift` = (length, gain of V, gain of K).
IMPACT = "mF3 * (dv3 + dk3 * vn3 / sd)"
DRIFT = (16, 0.5, 0.5)
POLICIES = [
    dict(name="naive", start=0, tail=1),
    dict(name="span starts (EPIC)"),
    dict(name="random .15", score="random", r=0.15, layer=0),
    dict(name="CacheBlend .15", score="dv1**2", r=0.15),
    dict(name="DHD .15", score="mA1 * da1", r=0.15),
    dict(name="DHD .30", score="mA1 * da1", r=0.30),
    dict(name="attention .15", score="mF3", r=0.15, layer=3),
    dict(name="impact, runs .15", score=IMPACT, r=0.15, layer=3, run=16),
    dict(name="impact, runs .30", score=IMPACT, r=0.30, layer=3, run=16),
    dict(name="deviation, runs .15", score="dv1**2", r=0.15, run=16),
    dict(name="two passes .30", score="two_pass * dv1", r=0.30, passes=1),
    dict(name="donor attention .15", score="donor**0.5 * dv1", r=0.15),
    dict(name="CacheBlend .15 + drift", score="dv1**2", r=0.15, drift=DRIFT),
    dict(name="deviation, runs, tau .12", score="dv1**2", tau=0.12, r=0.60, run=16),
    dict(name="deviation, tau .12 + drift", score="dv1**2", tau=0.12, r=0.60, drift=DRIFT),
]


def main():
    args = parse_arguments()
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    decoder = Decoder(args.model, "cuda" if torch.cuda.is_available() else "cpu")
    policies = [p for p in POLICIES if not args.only or p["name"] in args.only]
    results = []
    for kind, ids, donor, end in requests(args):
        request = Request(decoder, ids, donor, end)
        results += [dict(kind=kind, policy=p["name"], **run(request, p)) for p in policies]
    print_table(results)
    if args.json:
        args.json.write_text(json.dumps(results))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--per-kind", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=7000)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


def requests(args):
    """(kind, prompt tokens, donor tokens, end token) of the first requests of each kind; a kind is a workload's file and the
    last part of the id without digits."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name)

    def tokens(record):
        text = tokenizer.apply_chat_template(record["messages"], add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    seen = {}
    for path in sorted(args.data.glob("*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines() if line]
        by_id = {record["id"]: record for record in records}
        for record in (r for r in records if r.get("donor_id") in by_id):
            last = record["id"].rsplit("/", 1)[-1]
            kind = record["workload"] + ("" if last[-2:].isdigit() or len(last) == 2 else " " + last)
            if seen.get(kind, 0) >= args.per_kind:
                continue
            ids, donor = tokens(record), tokens(by_id[record["donor_id"]])
            if max(len(ids), len(donor)) <= args.max_tokens:
                seen[kind] = seen.get(kind, 0) + 1
                yield kind, ids, donor, tokenizer.eos_token_id


def spans(donor, ids):
    """(start in the donor, start in the prompt, length): the common prefix, then from left to right the longest match."""
    n = 0
    while n < min(len(donor), len(ids) - 1) and donor[n] == ids[n]:
        n += 1
    found, at, starts = [(0, 0, n)] if n else [], n, {}
    for i in range(len(donor) - MIN_SPAN + 1):
        starts.setdefault(tuple(donor[i : i + MIN_SPAN]), []).append(i)
    while at + MIN_SPAN <= len(ids):
        best = (0, 0)
        for start in starts.get(tuple(ids[at : at + MIN_SPAN]), ()):
            n = MIN_SPAN
            while at + n < len(ids) and start + n < len(donor) and ids[at + n] == donor[start + n]:
                n += 1
            best = max(best, (n, -start))
        if best[0]:
            found.append((-best[1], at, best[0]))
        at += best[0] or 1
    return found


class Decoder:
    """Weights of a GGUF file unpacked to f32. Keys and values are (heads, tokens, size), keys rotated."""

    def __init__(self, path, device):
        from gguf import GGUFReader
        from gguf.quants import dequantize

        reader = GGUFReader(path)
        facts = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer")}
        arch, self.device = facts["general.architecture"], device
        self.layers, self.width = facts[arch + ".block_count"], facts[arch + ".embedding_length"]
        self.heads, self.kv_heads = facts[arch + ".attention.head_count"], facts[arch + ".attention.head_count_kv"]
        self.size, self.epsilon = self.width // self.heads, facts[arch + ".attention.layer_norm_rms_epsilon"]
        exponent = torch.arange(0, self.size, 2, dtype=torch.float64, device=device) / self.size
        self.frequencies = facts[arch + ".rope.freq_base"] ** -exponent
        self.w = {}
        for tensor in reader.tensors:
            x = torch.from_numpy(numpy.array(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32)).to(device)
            if arch == "llama" and (".attn_q." in tensor.name or ".attn_k." in tensor.name):  # stored for interleaved pairs
                x = x.reshape(-1, self.size // 2, 2, self.width).transpose(1, 2).reshape(x.shape).contiguous()
            self.w[tensor.name] = x
        self.embedding = self.w["token_embd.weight"]
        self.head = self.w.get("output.weight", self.embedding)

    def turn(self, x, positions, sign=1):
        """Rotates (.., tokens, size) by the angles of `positions`, in halves."""
        angle = positions.double()[:, None] * self.frequencies
        cos, sin = angle.cos().float(), sign * angle.sin().float()
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def norm(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * weight

    def qkv(self, layer, hidden, positions):
        x = self.norm(hidden, self.w[f"blk.{layer}.attn_norm.weight"])

        def project(name, heads):
            name = f"blk.{layer}.attn_{name}."
            return F.linear(x, self.w[name + "weight"], self.w.get(name + "bias")).view(-1, heads, self.size).transpose(0, 1)

        q, k, v = project("q", self.heads), project("k", self.kv_heads), project("v", self.kv_heads)
        return self.turn(q, positions), self.turn(k, positions), v

    def finish(self, layer, hidden, q, k, v, mask=None):
        """Attention of the rows `q`, output projection and the feed-forward part; without a mask the rows are all tokens."""
        w, group = lambda name: self.w[f"blk.{layer}.{name}.weight"], self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 0)[None], v.repeat_interleave(group, 0)[None]
        out = F.scaled_dot_product_attention(q[None], k, v, attn_mask=mask, is_causal=mask is None)[0]
        hidden = hidden + F.linear(out.transpose(0, 1).reshape(len(hidden), -1), w("attn_output"))
        x = self.norm(hidden, w("ffn_norm"))
        return hidden + F.linear(F.silu(F.linear(x, w("ffn_gate"))) * F.linear(x, w("ffn_up")), w("ffn_down"))

    def logits(self, hidden):
        return F.linear(self.norm(hidden, self.w["output_norm.weight"]), self.head)

    def dense(self, ids):
        """K and V (layers, heads, tokens, size), the hidden states that enter the first layers, and the last ones."""
        hidden, positions, entering = self.embedding[ids], torch.arange(len(ids), device=self.device), []
        keys = torch.empty(self.layers, self.kv_heads, len(ids), self.size, device=self.device)
        values = torch.empty_like(keys)
        for layer in range(self.layers):
            if layer <= DEEPEST_CHECK:
                entering.append(hidden)
            q, keys[layer], values[layer] = self.qkv(layer, hidden, positions)
            hidden = self.finish(layer, hidden, q, keys[layer], values[layer])
        return keys, values, entering, hidden

    def rows(self, positions, hidden, first, keys, values, after_write=None, watch=None):
        """Runs the rows at `positions` from layer `first` on; their K and V replace those in the cache."""
        mask = self.mask(positions, keys.shape[2])
        for layer in range(first, self.layers):
            q, k, v = self.qkv(layer, hidden, positions)
            stale = keys[layer][:, positions], values[layer][:, positions]
            keys[layer][:, positions], values[layer][:, positions] = k, v
            if after_write:
                after_write(layer, k - stale[0], v - stale[1])
            if watch:
                watch(q, keys[layer])
            hidden = self.finish(layer, hidden, q, keys[layer], values[layer], mask)
        return hidden

    def mask(self, positions, n):
        """Additive causal mask; rows are padded in memory, which the fused attention asks for."""
        mask = torch.zeros(len(positions), (n + 15) // 16 * 16, device=self.device)[:, :n]
        return mask.masked_fill_(torch.arange(n, device=self.device)[None] > positions[:, None], -math.inf)

    def received(self, q, keys, positions):
        """Attention that each token receives from the rows `q`, summed over rows and heads."""
        total, keys = torch.zeros(keys.shape[1], device=self.device), keys.repeat_interleave(self.heads // self.kv_heads, 0)
        for at in range(0, len(positions), 512):
            scores = q[:, at : at + 512] @ keys.transpose(1, 2) / math.sqrt(self.size)
            total += (scores + self.mask(positions[at : at + 512], keys.shape[1])).softmax(-1).sum((0, 1))
        return total


class Request:
    """What all policies share: full computation, its greedy answer, and the stale cache."""

    def __init__(self, decoder, ids, donor, end):
        self.decoder, self.n, device = decoder, len(ids), decoder.device
        self.ids, donor_ids = torch.tensor(ids, device=device), torch.tensor(donor, device=device)
        answer = self.greedy(end)
        self.all = torch.cat([self.ids, torch.tensor(answer[:-1], device=device, dtype=torch.long)])
        self.keys, self.values, self.entering, hidden = decoder.dense(self.all)
        self.expected = decoder.logits(hidden[self.n - 1 :]).log_softmax(-1)
        donor_keys, donor_values, _, _ = decoder.dense(donor_ids)
        self.stale_keys, self.stale_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        self.span = torch.full((self.n,), -1, device=device)
        self.offset, self.prefix, kept = torch.zeros_like(self.span), 0, torch.zeros(self.n, device=device)
        donated = self.donor_attention(donor_ids, donor_keys, donor_values)
        for index, (source, target, n) in enumerate(spans(donor, ids)):
            to, of = slice(target, target + n), slice(source, source + n)
            shift = torch.tensor([target - source], device=device)
            self.stale_keys[:, :, to] = decoder.turn(donor_keys[:, :, of], shift)
            self.stale_values[:, :, to], kept[to] = donor_values[:, :, of], donated[of]
            self.span[to], self.offset[to] = index, torch.arange(n, device=device)
            self.prefix = n if source == target == 0 else self.prefix
        self.moved = (self.span >= 0) & (torch.arange(self.n, device=device) >= self.prefix)
        self.vectors = {"donor": kept, "sd": math.sqrt(decoder.size)}

    def greedy(self, end):
        d, answer = self.decoder, []
        keys, values, _, hidden = d.dense(self.ids)
        keys, values = (F.pad(x, (0, 0, 0, ANSWER)) for x in (keys, values))
        while True:
            token = d.logits(hidden[-1:]).argmax(-1)
            answer.append(token.item())
            if len(answer) == ANSWER or answer[-1] == end:
                return answer
            at = torch.tensor([self.n + len(answer) - 1], device=d.device)
            hidden = d.rows(at, d.embedding[token], 0, keys, values)

    def donor_attention(self, ids, keys, values):
        """Attention received in the donor's own prefill, from 256 rows spread over it, by the rows that can see the token."""
        rows = torch.linspace(0, len(ids) - 1, min(len(ids), 256), device=ids.device).long().unique()
        seen = (rows[:, None] >= torch.arange(len(ids), device=ids.device)).sum(0).clamp_min(1)
        return self.all_layers(rows, ids, keys.clone(), values.clone()) / seen

    def all_layers(self, rows, ids, keys, values):
        d, found = self.decoder, []
        d.rows(rows, d.embedding[ids[rows]], 0, keys, values, watch=lambda q, k: found.append(d.received(q, k, rows)))
        return torch.stack(found).mean(0)

    def always(self, start=RUN_START, tail=TAIL):
        """Tokens that every policy computes."""
        chosen = (self.span < 0) | (self.moved & (self.offset < start))
        chosen[self.n - tail :] = True
        return chosen

    def compute(self, name):
        d, n, layer = self.decoder, self.n, int(name[2:]) if name[2:].isdigit() else 0
        fresh = self.always().nonzero()[:, 0]
        if name == "random":
            return torch.rand(n, generator=torch.Generator().manual_seed(zlib.crc32(b"%d" % n))).to(d.device)
        if name == "two_pass":
            return self.all_layers(fresh, self.ids, self.stale_keys[:, :, :n].clone(), self.stale_values[:, :, :n].clone())
        if name[:2] in ("mA", "mF"):
            rows = fresh if name[1] == "F" else torch.arange(self.prefix, n, device=d.device)
            q, k, _ = d.qkv(layer, self.entering[layer], torch.arange(len(self.all), device=d.device))
            return d.received(q[:, rows], k[:, :n], rows)
        now, before = (self.keys, self.stale_keys) if name[:2] == "dk" else (self.values, self.stale_values)
        x = now[layer] if name[:2] == "vn" else now[layer] - before[layer]
        return x[:, :n].transpose(0, 1).reshape(n, -1).norm(p=1 if name[:2] == "da" else 2, dim=-1)

    def __getitem__(self, name):
        if name not in self.vectors:
            self.vectors[name] = self.compute(name)
        return self.vectors[name]


def choose(request, policy, candidates):
    """The runs of the best mean score: until `r` of the prompt is chosen, or until the score left is at most `tau` (if given)."""
    score = torch.where(candidates, eval(policy["score"], {"__builtins__": {}}, request), torch.zeros(request.n, device=candidates.device)).float()
    run = (request.span * 1_000_000 + request.offset // policy.get("run", 1))[candidates]
    _, inverse, count = torch.unique(run, return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), device=score.device).index_add_(0, inverse, score[candidates])
    order = (total / count).argsort(descending=True, stable=True)
    fits = count[order].cumsum(0) - count[order] / 2 <= policy["r"] * request.n
    if "tau" in policy:
        left = score.sum() - total[order].cumsum(0) + total[order]  # before the run is taken
        fits &= left > policy["tau"] * (request["vn1"] ** 2).mean()
    taken = torch.zeros(len(count), dtype=torch.bool, device=score.device)
    taken[order[fits]] = True
    chosen = torch.zeros_like(candidates)
    chosen[candidates] = taken[inverse]
    return chosen


def follow_drift(request, drift, rows, samples, targets, first, keys, values):
    """After the rows of a layer are written, the tokens that stay stale are moved by the mean difference of the recomputed ones of
    their span, weighted by exp(-distance / length); keys are compared and moved without their rotation."""
    length, gain_v, gain_k = drift
    d, same = request.decoder, request.span[targets][:, None] == request.span[samples][None]
    weight = same * torch.exp(-(targets[:, None] - samples[None]).abs() / length)
    weight = weight / (weight.sum(1, keepdim=True) + 0.1)  # far from any sample nothing is known
    place = torch.searchsorted(rows, samples)

    def after_write(layer, key_change, value_change):
        if layer > first:  # up to `first` the cache is exact
            values[layer][:, targets] += gain_v * (weight @ value_change[:, place])
            keys[layer][:, targets] += gain_k * d.turn(weight @ d.turn(key_change[:, place], samples, -1), targets)

    return after_write


def run(request, policy):
    """KL of one policy on one request, mean and first token; top-1 agreement; work."""
    d, n, device = request.decoder, request.n, request.decoder.device
    first = policy.get("layer", 1 if "score" in policy else 0)
    always = request.always(policy.get("start", RUN_START), policy.get("tail", TAIL))
    always[: request.prefix] &= torch.arange(request.prefix, device=device) >= n - policy.get("tail", TAIL)
    candidates = request.moved & ~always
    chosen = choose(request, policy, candidates) if "score" in policy and candidates.any() else torch.zeros_like(always)
    keys, values = request.stale_keys.clone(), request.stale_values.clone()
    if first:  # dense layers, and the projections that the deviation was measured with, are exact
        keys[: first + 1], values[: first + 1] = request.keys[: first + 1], request.values[: first + 1]
    rows = torch.cat([(always | chosen).nonzero()[:, 0], torch.arange(n, len(request.all), device=device)])
    hook = None
    samples = (request.moved & (always | chosen) & (request.offset >= RUN_START)).nonzero()[:, 0]
    targets = (candidates & ~chosen).nonzero()[:, 0]
    if "drift" in policy and len(samples) and len(targets):
        hook = follow_drift(request, policy["drift"], rows, samples, targets, first, keys, values)
    hidden = d.rows(rows, request.entering[first][rows], first, keys, values, after_write=hook)
    found = d.logits(hidden[-len(request.expected) :]).log_softmax(-1)
    kl = (request.expected.exp() * (request.expected - found)).sum(-1)
    computed = first * (n - request.prefix) + (d.layers - first) * (always | chosen).sum().item()
    computed += policy.get("passes", 0) * d.layers * request.always().sum().item()
    agree = (request.expected.argmax(-1) == found.argmax(-1)).float().mean().item()
    return dict(kl=kl.mean().item(), first=kl[0].item(), top1=agree, work=computed / (n * d.layers))


def print_table(results):
    """Every request counts the same within its kind, every kind the same in the means."""
    kinds = list(dict.fromkeys(r["kind"] for r in results))
    print("| policy | " + " | ".join(kinds) + " | mean KL | first token | top-1 | work |")
    print("|---|" + "--:|" * (len(kinds) + 4))
    for policy in dict.fromkeys(r["policy"] for r in results):
        mine = [[r for r in results if (r["kind"], r["policy"]) == (kind, policy)] for kind in kinds]
        of = lambda name: [sum(r[name] for r in rows) / len(rows) for rows in mine]
        means = [f"{sum(of(name)) / len(kinds):.4f}" for name in ("kl", "first", "top1", "work")]
        print(f"| {policy} | " + " | ".join(f"{x:.4f}" for x in of("kl")) + " | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
