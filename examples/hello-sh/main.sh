# Greets whoever the request's body or query names. `sh` runs it; it needs neither a `#!` line nor the executable bit.
set -eu

# A body is a string where its content type is text, and may be any JSON value.
name=$(jq -r '(.body | objects | .name) // .query.name // "World"' /request.json)

echo "greeting $name" # goes to the function's logs, never into the answer

jq -n --arg name "$name" '{body: {message: "Hello, \($name)!", timestamp: (now | todate)}}' >/result.json
