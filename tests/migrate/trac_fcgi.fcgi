#!/usr/bin/env python3
try:
    import os
    if 'TRAC_ENV' not in os.environ:
        os.environ['TRAC_ENV'] = '/srv/trac'
    from trac.web import fcgi_frontend
    fcgi_frontend.run()
except SystemExit:
    raise
except Exception as e:
    print('Content-Type: text/plain\r\n\r\n')
    print('Oops...', e)
