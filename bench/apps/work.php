<?php
// The same as work.py, as far as PHP-FPM is compared: hello, 64 KiB, upload, stream, wait.
$path = strtok($_SERVER['REQUEST_URI'], '?');
header('Content-Type: text/plain');
switch (explode('/', $path)[1]) {
case '':
    $body = "hello world\n";
    break;
case '64k':
    $body = str_repeat('x', 65536);
    break;
case 'upload':
    $body = sprintf("%11d\n", strlen(file_get_contents('php://input')));
    break;
case 'stream':
    header('Content-Length: 1048576');
    for ($i = 0; $i < 64; $i++) {
        echo str_repeat('x', 16384);
        flush();
    }
    return;
case 'wait':
    usleep(1000 * (int) explode('/', $path)[2]);
    $body = "hello world\n";
    break;
default:
    http_response_code(404);
    return;
}
header('Content-Length: ' . strlen($body));
echo $body;
