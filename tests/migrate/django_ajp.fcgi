import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
from django.core.servers.fastcgi import runfastcgi
runfastcgi(["protocol=ajp", "method=threaded", "host=127.0.0.1", "port=@PORT@", "daemonize=false"])
