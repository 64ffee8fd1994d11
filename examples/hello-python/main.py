"""Greets whoever the request's body or query names."""

import json
from datetime import datetime, timezone

with open("/request.json", encoding="utf-8") as file:
    request = json.load(file)

body = request.get("body")
query = request.get("query") or {}
# A body is a string where its content type is text, and may be any JSON value.
name = (body.get("name") if isinstance(body, dict) else None) or query.get("name") or "World"

result = {
    "message": f"Hello, {name}!",
    "timestamp": datetime.now(timezone.utc).isoformat(),
}
print(f"greeting {name}")  # goes to the function's logs, never into the answer

with open("/result.json", "w", encoding="utf-8") as file:
    json.dump({"body": result}, file)
