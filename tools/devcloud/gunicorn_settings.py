# SPDX-License-Identifier: Apache-2.0
"""The settings of gunicorn for all API services.

An older gunicorn ignores those that it does not know, which it would refuse as
arguments: https://docs.gunicorn.org/en/stable/settings.html
"""

control_socket_disable = True   # since 25.1
graceful_timeout = 5
threads = 8
timeout = 300
worker_class = 'gthread'
