#!/usr/bin/env python3
"""What a perfect engine that runs one kernel after another would reach on exactly these rows.

    scripts/bench/bound --model models/qwen3-0.6b --kv-tokens 1200000 W2:8000 [--bandwidth 4.26e12 --flops 700e12]
    scripts/bench/bound --model models/qwen3-0.6b --json figures.jsonl      # lines of scripts/bench/gpu: bound and % reached

The run is simulated step by step: rows are admitted while the KV of all of them fits to their end (for a model with
experts the best of this and three ways to admit more and to compute again what had to leave), in the file's order or the
longest answers first, whichever is faster; prompts share steps of --budget rows, every running row draws one token a step. A step costs
    max(operations / flops, weight bytes / bandwidth) + KV bytes / bandwidth + element-wise bytes / bandwidth
with every weight read once (of the experts those that some row chose), KV read once and written once, 14 passes over the
hidden states a layer, f32 logits of emitting rows not counted. --flops is what large products sustain at the run's clock.
"""
import argparse
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import workloads  # noqa: E402

DEVICES = {"H200": (4.26e12, 700e12), "H100": (3.0e12, 700e12)}


class Model:
    """Sizes of a dense or sparse decoder in 16-bit types."""

    def __init__(self, config):
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        dim = config.get("head_dim", hidden // heads)
        kv_heads = config["num_key_value_heads"]
        self.layers, self.hidden, self.vocab = config["num_hidden_layers"], hidden, config["vocab_size"]
        self.q_width = heads * dim
        self.kv_bytes = 2 * self.layers * kv_heads * dim * 2  # a token
        attention = hidden * (2 * self.q_width + 2 * kv_heads * dim)
        self.experts = config.get("num_experts", 0)
        self.top_k = config.get("num_experts_per_tok", 0)
        if self.experts:
            self.expert = 3 * hidden * config["moe_intermediate_size"]
            self.dense = attention + hidden * self.experts
            self.active = self.layers * (self.dense + self.top_k * self.expert)
        else:
            self.dense = attention + 3 * hidden * config["intermediate_size"]
            self.active = self.layers * self.dense

    def weight_bytes(self, rows):
        """Of the layers, that a step of so many rows reads; the LM head apart."""
        parameters = self.dense
        if self.experts:
            parameters += self.expert * self.experts * (1 - (1 - self.top_k / self.experts) ** rows)
        return 2 * self.layers * parameters

    def step(self, rows, emitting, context, pairs, bandwidth, flops, share=1.0, head=True):
        """Seconds. context: KV tokens that decode rows read; pairs: (prompt row, token it sees). share: of the layers, and whether
        the LM head is there: a stage of a pipeline."""
        operations = share * 2 * self.active * rows
        weights = share * self.weight_bytes(rows)
        if head:
            operations += 2 * self.vocab * self.hidden * emitting
            weights += 2 * self.vocab * self.hidden
        products = max(operations / flops, weights / bandwidth)
        attention = 4 * self.layers * self.q_width * pairs / (0.8 * flops)
        kv = (context + rows) * self.kv_bytes / bandwidth
        elementwise = 14 * self.layers * self.hidden * 2 * rows / bandwidth
        return products + share * (attention + kv + elementwise)


def simulate(model, rows, kv_tokens, budget, bandwidth, flops, reserve=1.0):
    """rows: (prompt, output) tokens, none of them shared. Seconds of the whole run. A row is admitted when what the rows hold, and
    a share of what they will grow by, fits; where the KV is full nevertheless the youngest row leaves, and its tokens are computed
    again when it comes back."""
    waiting = list(reversed(rows))  # (tokens to compute first, tokens to draw)
    running = []                    # oldest first: [tokens held, tokens to draw]
    pending = None                  # [rows left, tokens, to draw]
    seconds = 0.0
    while waiting or pending or running:
        held = sum(tokens for tokens, _ in running)
        computed = pending[1] - pending[0] if pending else 0
        while running and held + len(running) + computed > kv_tokens:
            waiting.append(tuple(running.pop()))
            held -= waiting[-1][0]
        admitted = held + (pending[1] if pending else 0)
        growth = sum(draws for _, draws in running) + (pending[2] if pending else 0)
        left, prompt_rows, pairs, started = budget - len(running), 0, 0, []
        while left > 0:
            if pending is None:
                if not waiting or admitted + waiting[-1][0] + reserve * (growth + waiting[-1][1]) > kv_tokens:
                    break
                tokens, draws = waiting.pop()
                admitted += tokens
                growth += draws
                pending = [tokens, tokens, draws]
            now = min(left, pending[0])
            pairs += now * (pending[1] - pending[0]) + now * (now + 1) // 2
            pending[0] -= now
            prompt_rows += now
            left -= now
            if pending[0] == 0:
                started.append([pending[1] + 1, pending[2] - 1])
                pending = None
        seconds += model.step(len(running) + prompt_rows, len(running) + len(started), held, pairs, bandwidth, flops)
        running = [[tokens + 1, draws - 1] for tokens, draws in running] + started
        running = [row for row in running if row[1] > 0]
    return seconds


def best_of(model, rows, kv_tokens, budget, bandwidth, flops):
    """The shortest of some ways to admit; without experts a larger batch does not pay for tokens that are computed again."""
    reserves = (0.0, 0.25, 0.5, 1.0) if model.experts else (1.0,)
    longest_first = sorted(rows, key=lambda row: -row[1])
    return min(simulate(model, order, kv_tokens, budget, bandwidth, flops, reserve)
               for order in (rows, longest_first) for reserve in reserves)


def lengths(workload, count, vocab):
    return [(len(row["prompt_token_ids"]), row["max_tokens"]) for row in workloads.rows(workload, count, vocab, 0)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of config.json")
    parser.add_argument("--kv-tokens", type=int)
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--device", choices=sorted(DEVICES), default="H200", help="default of the next two")
    parser.add_argument("--bandwidth", type=float, help="bytes a second of a large copy, read and written")
    parser.add_argument("--flops", type=float)
    parser.add_argument("--json", help="file of scripts/bench/gpu")
    parser.add_argument("workloads", nargs="*", help="name:rows")
    args = parser.parse_args()
    bandwidth = args.bandwidth or DEVICES[args.device][0]
    flops = args.flops or DEVICES[args.device][1]
    model = Model(json.load(open(os.path.join(args.model, "config.json"))))
    runs = [(name, int(count), args.kv_tokens, None) for name, count in (w.split(":") for w in args.workloads)]
    if args.json:
        runs += [(run["workload"], run["rows"], run["kv_tokens"], run) for run in map(json.loads, open(args.json))]
    for name, count, kv_tokens, run in runs:
        if not kv_tokens:
            sys.exit("bound: --kv-tokens is needed for a workload without a run")
        if name == "W4":
            print("W4: rows share their prefixes, which this bound does not know")
            continue
        rows = lengths(name, count, model.vocab)
        seconds = best_of(model, rows, kv_tokens, args.budget, bandwidth, flops)
        tokens = sum(p + d for p, d in rows)
        line = "%-3s %6d rows  bound %9.0f total %8.0f output tok/s" % (name, count, tokens / seconds, sum(d for _, d in rows) / seconds)
        if run:
            line += "   reached %9.0f, %.1f %%" % (run["steady_total"], 100 * run["steady_total"] * seconds / tokens)
        print(line, flush=True)


if __name__ == "__main__":
    main()
