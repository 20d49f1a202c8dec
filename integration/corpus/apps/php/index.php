<?php
// A page from a template, and a line in a log.
require '/usr/share/php/Twig/autoload.php';
require '/usr/share/php/Monolog/autoload.php';

$log = new Monolog\Logger('shop');
$log->pushHandler(new Monolog\Handler\StreamHandler('php://stderr'));
$twig = new Twig\Environment(new Twig\Loader\FilesystemLoader(__DIR__ . '/templates'));
$prices = ['tea' => 3, 'coffee' => 4, 'cake' => 5];
$log->info('request', ['path' => $_SERVER['REQUEST_URI']]);
echo $twig->render('prices.html', ['prices' => $prices, 'version' => PHP_VERSION]);
