#!/usr/bin/env bash
# The health check of the service's container: whether /readyz answers 200.
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${JOB_API_PORT:-8800}"
printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
read -r -t 7 _ status _ <&3
[[ $status == 200 ]]
