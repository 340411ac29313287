"""Ten thousand short rows of uneven length."""
import json
import random

random.seed(1)
for i in range(10000):
    ids = [random.randrange(3, 259) for _ in range(1 + i % 7)]
    print(json.dumps({"id": i, "prompt_token_ids": ids, "max_tokens": 1 + i % 3, "ignore_eos": True}))
