// Package server answers workers over HTTP: the routes of package wire, and
// /healthz, /readyz and /metrics for those who run proxyd.
//
// A delta request goes through these steps: decode within limits; ask the registry
// with the client's own credentials (which is what authorises the client); if
// layers are unknown, ingest them while progress frames tell the worker that
// somebody is at work, and end with a retry frame; else plan, and stream.
//
// What is kept in memory between requests is bounded by [Config.CacheBytes]:
// the object lists of layers, prepared images, and the indexes of packs. What a
// request holds is bounded too: a slot for each kind of work, a few frames per
// stream, and a deadline for every write, so that a client that stalls is cut off
// and a client that is merely slow is not.
package server
