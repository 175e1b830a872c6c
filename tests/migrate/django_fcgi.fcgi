#!/usr/bin/env python3
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# Switch to the directory of your project.
os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"

from django.core.servers.fastcgi import runfastcgi
runfastcgi(method="threaded", daemonize="false", maxchildren="4", socket="@SOCKET@")
