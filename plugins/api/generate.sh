#!/bin/sh
# Generates the Go code of the API. Needs protoc (Debian: protobuf-compiler) and
# the network or module cache for the two generators, which are pinned here.
set -eu
cd "$(dirname "$0")"
command -v protoc >/dev/null || {
	echo "protoc is missing: apt-get install protobuf-compiler" >&2
	exit 1
}
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
PATH=$bin:$PATH protoc --go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	starlight/v1/starlight.proto starlight/v1/traces.proto
