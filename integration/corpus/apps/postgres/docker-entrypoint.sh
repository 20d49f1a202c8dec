#!/bin/bash
# Makes a database cluster at the first start, and gives up root.
set -e
if [ "$(id -u)" = 0 ]; then
	install -d -o postgres -g postgres -m 0700 "$PGDATA"
	install -d -o postgres -g postgres -m 0755 /run/postgresql
	exec gosu postgres "$0" "$@"
fi
if [ ! -e "$PGDATA/PG_VERSION" ]; then
	initdb --username=postgres --auth=trust --no-instructions
fi
exec "$@"
