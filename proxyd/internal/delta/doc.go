// Package delta decides what a worker is sent and writes it.
//
// [NewImage] prepares, once per image, all that planning needs. [Make] is the
// planner, a pure function of image, inventory and order: what the worker has
// and what upper layers hide is left out, the rest is put in the order of sending.
// [Stream] writes the data frames of a plan: small objects are taken out of
// their packs and regrouped into solid zstd frames, because what is needed
// together compresses together; pieces of large objects are sent as they are stored.
// [Answer] writes single objects that a worker asks for meanwhile.
package delta
