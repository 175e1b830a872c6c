<?php
[$path, $query] = array_pad(explode("?", $_SERVER["REQUEST_URI"], 2), 2, "");
$given = $_SERVER["HTTP_X_GIVEN"] ?? "";
const PIECE = 8192;

header("Content-Type: text/plain");
header("X-Method: " . $_SERVER["REQUEST_METHOD"]);
header("X-Given: " . $given);
if ($path === "/missing") {
    http_response_code(404);
}
if ($path === "/stderr") {
    error_log("a complaint");
}
if ($path === "/size") {
    $piece = implode("", array_map("chr", range(0, PIECE - 1)));
    for ($left = (int)$query; $left > 0; $left -= PIECE) {
        echo substr($piece, 0, min($left, PIECE));
    }
} elseif ($path === "/stream") {
    // PHP waits until it has a piece of this size.
    $body = fopen("php://input", "rb");
    while (($piece = fread($body, PIECE)) !== "" && $piece !== false) {
        echo $piece;
        flush();
    }
} elseif ($path === "/endless") {
    // It is told by its output that nobody is there, and ends then.
    register_shutdown_function(fn() => touch($given));
    set_time_limit(0);
    while (true) {
        echo str_repeat("x", 32768);
        flush();
        usleep(10000);
    }
} else {
    readfile("php://input");
}
