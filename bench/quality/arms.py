"""What is compared: changes to the demo's recipe, by the table they stand in.

An arm is a mapping from a dotted key of the recipe to its value; the key `testbed.KEY` changes the testbed instead.
What is changed is the demo's recipe, merged as in the paper (VaRM by matrix); `main` is the demo's recipe as it is.
Curves are drawn for one target of all sources, so that merging has no part in them.
"""

from typing import Any

Arm = dict[str, Any]

RECIPE: Arm = {}
ONE_LONG, EACH_LONG = ({"kind": "rescaled_sum", "reach": reach} for reach in ("one", "each"))
MAIN: Arm = {"merged.method": {"kind": "rescaled_sum"}}
FUSED_K = (4, 10, 16, 32)
MANY: Arm = {"testbed.rows": 1600}
MULTI: Arm = {"fused.mode": "multi"}
LONG: Arm = MULTI | {"targets.epochs": 20}
ASKED = {n: {"answers.per_chat": n, "answers.max_tokens": 192} for n in (1, 2, 4, 8)}
ONE: Arm = {"testbed.shared_vocabulary": True}
DRAWN = {n: {"distributions.store": {"kind": "sampled", "draws": n}, "targets.tail": "sampled"} for n in (10, 64)}
HALF = {"density": 0.5, "normalize": True}
MOST = {"density": 0.9, "normalize": True}
# What "merging" does not have, of methods for any number of targets.
OTHERS: dict[str, Arm] = {
    "TIES, density 0.5": {"kind": "ties", **HALF},
    "DARE and TIES, density 0.5": {"kind": "dare_ties", **HALF},
    "DELLA, density 0.5": {"kind": "della", **HALF},
    "DELLA, linear, density 0.5": {"kind": "della_linear", **HALF},
    "breadcrumbs, density 0.9": {"kind": "breadcrumbs", **MOST},
    "breadcrumbs and TIES, density 0.9": {"kind": "breadcrumbs_ties", **MOST},
    "multi-SLERP": {"kind": "multislerp"},
    "model stock": {"kind": "model_stock"},
    "RAM": {"kind": "ram"},
    "RAM+": {"kind": "ramplus_tl"},
}
FROM_SFT: Arm = {"targets.start": "sft"}
START: Arm = FROM_SFT | {
    "targets.controls": ["sft", "longer"],
    "merged.method": ONE_LONG,
}
ROUNDS: Arm = START | {"targets.rounds": 5, "merged.method": EACH_LONG}
ISLANDS: Arm = ONE | {"testbed.pivot_vocabulary": "unigram"}

TABLES: dict[str, dict[str, Arm]] = {
    "main": {"recipe": MAIN},
    "alignment": {
        "bytes": RECIPE,
        "bytes, no inner tail": {"fused.align": {"kind": "bytes", "inner_tail": "none"}},
        "ms": {"fused.align": {"kind": "ms"}},
        "mined": {"fused.align": {"kind": "mined"}},
        "em": {"fused.align": {"kind": "em"}},
    },
    "choosing": {
        "MinCE by sequence, gold where the pivot wins": RECIPE,
        "MinCE by token": {"fused.choose": {"kind": "mince", "level": "token", "trust": 1}},
        "MinCE in nats a token": {"fused.choose": {"kind": "mince", "unit": "token", "trust": 1}},
        "AvgCE": {"fused.choose": {"kind": "avgce"}},
        "the pivot's own distribution where it wins": {"fused.pivot_wins": "distil"},
        "multi: one set from all sources": MULTI,
    },
    # Targets that start from the SFT control and are held to it where their source does not teach.
    "start": {
        "from the pivot": MAIN,
        "from SFT": START,
        "from SFT, in five rounds": ROUNDS,
    },
    "start_answers": {
        "from the pivot": MAIN,
        "from SFT, in five rounds": ROUNDS,
        "the same, 4 answers to a chat": ROUNDS | ASKED[4],
        "the same, 64 draws": ROUNDS | ASKED[4] | DRAWN[64],
        "8 answers to a chat": ROUNDS | ASKED[8],
        "8 answers, 6 epochs": ROUNDS | ASKED[8] | {"targets.epochs": 6},
    },
    "start_multi": {
        "from the pivot": MULTI,
        "from SFT": MULTI | FROM_SFT,
        "from the pivot, 4 answers to a chat": MULTI | ASKED[4],
        "from SFT, 4 answers to a chat": MULTI | ASKED[4] | FROM_SFT,
    },
    # Targets that start from SFT have learned gold already.
    "start_lambda": {"0.2": START, **{f"{value}": START | {"targets.lambda_": value} for value in (0.0, 0.1, 0.5)}},
    "reach": {
        "one": START,
        "each": START | {"merged.method": EACH_LONG},
        "each, five rounds": ROUNDS,
        "one, five rounds": ROUNDS | {"merged.method": ONE_LONG},
    },
    "rounds": {"5": ROUNDS, "1": START, "2": ROUNDS | {"targets.rounds": 2}, "10": ROUNDS | {"targets.rounds": 10}},
    "trust": {"1": MULTI, "fitted": MULTI | {"fused.choose": {"kind": "mince"}}},
    "multi": {
        "a target for each source, merged": MAIN,
        "one target of all sources": MULTI,
    },
    # How many answers each source gives anew to each of the chats that it knows best.
    "answers": {"0": MULTI, **{f"{n}": MULTI | ASKED[n] for n in (1, 2, 4)}},
    "answered": {
        "none": MULTI,
        "4 to a chat": MULTI | ASKED[4],
        "4 to a chat, 15 epochs": MULTI | ASKED[4] | {"targets.epochs": 15},
    },
    "answers_as_gold": {
        "4 to a chat": MULTI | ASKED[4],
        "4 to a chat, as gold (lambda 1)": MULTI | ASKED[4] | {"targets.lambda_": 1.0},
    },
    "answers_drawn": {"the 64 largest": MULTI | ASKED[4], "64 draws": MULTI | ASKED[4] | DRAWN[64]},
    "answers_one_vocabulary": {"all different": MULTI | ASKED[4], "one": MULTI | ASKED[4] | ONE},
    "answers_merged": {"none": MAIN, "2 to a chat": MAIN | ASKED[2]},
    "loss": {
        "cross-entropy, tail bucket": MULTI,
        "kl": MULTI | {"targets.divergence": "kl"},
        "rkl": MULTI | {"targets.divergence": "rkl"},
        "jsd": MULTI | {"targets.divergence": "jsd"},
        "cross-entropy, tail renormalised": MULTI | {"targets.tail": "renormalise"},
        **{f"k = {k}": MULTI | {"fused.top_k": k} for k in FUSED_K},
        **{f"k = {k}, tail renormalised": MULTI | {"fused.top_k": k, "targets.tail": "renormalise"} for k in (10, 32)},
    },
    "lambda": {"0.2": MULTI, **{f"{value}": MULTI | {"targets.lambda_": value} for value in (0.0, 0.5, 0.8, 0.9)}},
    "epochs": {"10": MULTI, **{f"{value}": MULTI | {"targets.epochs": value} for value in (15, 20)}},
    # What is learnt from is not trained on, so all these have the same 1,600 chats, and share models and held-out ones.
    "rows": {f"{value}": MULTI | MANY | {"testbed.learn_from": value} for value in (280, 70, 140, 560, 1120)},
    # Twice the chats, and half as many epochs again.
    "enough": {
        "10 epochs": MULTI | MANY | {"testbed.learn_from": 560},
        "15 epochs": MULTI | MANY | {"testbed.learn_from": 560, "targets.epochs": 15},
    },
    "strength": {"1": MULTI, **{f"{value}": MULTI | {"testbed.strength": value} for value in (0.25, 0.5, 2.0, 4.0)}},
    "pivot": {"small": MULTI, "large": MULTI | {"testbed.pivot": "large"}},
    "sources": {
        "3": MAIN,
        **{f"{count}": MAIN | {"testbed.sources": count} for count in (1, 2, 4)},
        "4, VaRM": {"testbed.sources": 4},
        "4, one target of all": MULTI | {"testbed.sources": 4},
    },
    "random": {
        "rescaled sum": MAIN,
        "rescaled sum, and a source that has learned nothing": MAIN | {"testbed.random_source": True},
        "VaRM": RECIPE,
        "VaRM, and a source that has learned nothing": {"testbed.random_source": True},
    },
    "vocabulary": {"all different": LONG, "one": LONG | ONE},
    # Where the oracle's gain is lost, one step after the other. The sources of all rows are the same, to the bit.
    "lost": {
        "one vocabulary, dense": MULTI | ONE | {"distributions.top_k": 1024},
        "the 64 largest": MULTI | ONE,
        "the pivot's vocabulary is another": MULTI | ISLANDS,
        "a target for each source, merged": MAIN | ISLANDS,
    },
    "architecture": {"all different": MULTI, "one": MULTI | {"testbed.architecture": "llama"}},
    "tail": {
        "dense (k = V)": MULTI | ONE | {"distributions.top_k": 1024},
        "k = 64": MULTI | ONE,
        "64 draws": MULTI | ONE | DRAWN[64],
        "k = 10": MULTI | ONE | {"distributions.top_k": 10},
        "10 draws": MULTI | ONE | DRAWN[10],
        "k = 10, tail renormalised": MULTI | ONE | {"distributions.top_k": 10, "targets.tail": "renormalise"},
    },
    "draws": {
        "k = 64": MULTI,
        "64 draws": MULTI | DRAWN[64],
        "k = 10": MULTI | {"distributions.top_k": 10},
        "10 draws": MULTI | DRAWN[10],
    },
    "merging": {
        "VaRM, matrix": RECIPE,
        **{
            f"VaRM, {level}": {"merged.method": {"kind": "varm", "granularity": level}}
            for level in ("model", "layer", "module", "element")
        },
        "rescaled sum, from SFT": MAIN,
        "rescaled sum, from the pivot": MAIN | {"merged.base": "pivot"},
        **{
            f"SFT + {share} of what each target learned beyond it": {
                "merged.base": "sft",
                "merged.method": {"kind": "task_arithmetic", "weight": share},
            }
            for share in (0.4, 0.5, 0.6)
        },
        "linear": {"merged.method": {"kind": "linear"}},
        "TIES": {"merged.method": {"kind": "ties"}},
        "DARE, density 0.5": {"merged.method": {"kind": "dare_linear", "density": 0.5, "normalize": True}},
        "SCE, tau 0.1": {"merged.method": {"kind": "sce", "select_topk": 0.1}},
        "SCE, tau 1": {"merged.method": {"kind": "sce", "select_topk": 1.0}},
    },
    # From the pivot and from the SFT control: which of the two matters more than the method.
    "methods": {
        "rescaled sum": MAIN,
        **{f"{name}": {"merged.method": method} for name, method in OTHERS.items()},
        **{f"{name}, from SFT": {"merged.method": method, "merged.base": "sft"} for name, method in OTHERS.items()},
        "Karcher mean": {"merged.method": {"kind": "karcher"}},
    },
    "methods_for_two": {
        "rescaled sum": MAIN | {"testbed.sources": 2},
        "SLERP": {"testbed.sources": 2, "merged.method": {"kind": "slerp"}},
        "NuSLERP": {"testbed.sources": 2, "merged.method": {"kind": "nuslerp"}},
        "NuSLERP, from SFT": {"testbed.sources": 2, "merged.method": {"kind": "nuslerp"}, "merged.base": "sft"},
    },
    "methods_for_one": {
        "the target itself": {"testbed.sources": 1, "merged.method": {"kind": "passthrough"}},
        "NearSwap": {"testbed.sources": 1, "merged.method": {"kind": "nearswap", "t": 1e-3}},
        "Arcee fusion": {"testbed.sources": 1, "merged.method": {"kind": "arcee_fusion"}},
        "NearSwap, from SFT": {
            "testbed.sources": 1,
            "merged.method": {"kind": "nearswap", "t": 1e-3},
            "merged.base": "sft",
        },
        "Arcee fusion, from SFT": {
            "testbed.sources": 1,
            "merged.method": {"kind": "arcee_fusion"},
            "merged.base": "sft",
        },
    },
}
