#!/usr/bin/env bash
# Prism, the proxy that checks requests and answers against an OpenAPI description, into a folder that git ignores.
# Does nothing where it is installed already.
set -euo pipefail
cd "$(dirname "$0")"

version=5.14.2  # the last that runs on Node 20
prism=.prism/node_modules/@stoplight/prism-cli/package.json

if ! grep -qs "\"version\": \"$version\"" "$prism"; then
    npm install --no-save --no-audit --no-fund --loglevel error --prefix .prism "@stoplight/prism-cli@$version"
fi
