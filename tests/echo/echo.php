<?php
header("Content-Type: text/plain");
header("X-Method: " . $_SERVER["REQUEST_METHOD"]);
header("X-Given: " . ($_SERVER["HTTP_X_GIVEN"] ?? ""));
if (substr($_SERVER["REQUEST_URI"], -8) === "/missing") {
    http_response_code(404);
}
if (substr($_SERVER["REQUEST_URI"], -7) === "/stderr") {
    error_log("a complaint");
}
readfile("php://input");
