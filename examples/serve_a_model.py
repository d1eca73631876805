"""Brings a model into a cluster and asks it one question: `python examples/serve_a_model.py hf:ORG/NAME:Q4_K_M`."""

import json, os, sys, time, urllib.request  # noqa: E401, I001 - an example of twenty lines

from openai import OpenAI

ADMIN, TOKEN = os.environ["SLICE_ADMIN_URL"], os.environ["SLICE_OPERATOR_TOKEN"]


def admin(method: str, path: str, body: dict | None = None) -> dict:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{ADMIN}/api/v1/{path}", data, headers, method=method)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


pull = admin("POST", "pulls", {"name": "my-model", "source": sys.argv[1]})
while (pull := admin("GET", f"pulls/{pull['id']}"))["state"] in ("queued", "running"):
    time.sleep(0.5)
if pull["state"] != "done":
    sys.exit(f"{pull['error']['message']}; {pull['error']['hint']}")
admin("POST", "deployments", {"model": "my-model"})
while not admin("GET", "deployments/my-model")["ready_replicas"]:
    time.sleep(0.5)
with OpenAI(base_url=os.environ["SLICE_OPENAI_URL"], api_key=os.environ["SLICE_API_KEY"], max_retries=5) as client:
    question = [{"role": "user", "content": "Say hello in one short sentence."}]
    print(client.chat.completions.create(model="my-model", messages=question, max_tokens=32).choices[0].message.content)
