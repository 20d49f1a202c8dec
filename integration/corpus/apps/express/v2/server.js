'use strict';
// A small service on Debian's own Node.js modules.
const express = require('express');
const _ = require('lodash');
const async = require('async');
const semver = require('semver');

const app = express();
const counts = _.range(10).map((n) => n * n);
app.get('/', (req, res) => res.send('hello from express, node ' + semver.clean(process.version)));
app.get('/squares', (req, res, next) =>
  async.map(counts, (n, done) => done(null, n), (err, all) => (err ? next(err) : res.json(all))));
app.get('/sum', (req, res) => res.json({ sum: _.sum(counts) }));
app.listen(3000, () => console.log('listening on 3000'));
