import json

with open("/request.json") as file:
    request = json.load(file)

body = request.get("body")
name = body.get("name", "world") if isinstance(body, dict) else "world"
print(f"greeting {name}")  # shown by `dartcloud logs`

with open("/result.json", "w") as file:
    json.dump({"body": {"message": f"Hello, {name}!"}}, file)
