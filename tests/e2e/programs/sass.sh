#!/bin/sh
# Compiles the SCSS in the request's body by the Dart program beside this file.
set -e
sed -n 's/.*"body": *"\([^"]*\)".*/\1/p' /request.json |
  ./dart sass.snapshot --stdin --no-source-map --style=compressed >/tmp/out.css
printf '{"body":"%s"}' "$(cat /tmp/out.css)" >/result.json
