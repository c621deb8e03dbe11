#!/bin/sh
# As the official image's: options and configuration files alone mean a redis-server.
set -eu

case ${1:-} in
    -* | *.conf) set -- redis-server "$@" ;;
esac
exec "$@"
