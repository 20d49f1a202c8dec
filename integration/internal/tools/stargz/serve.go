package main

import (
	"context"
	"fmt"
	"net"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"google.golang.org/grpc"
)

type server struct {
	socket, root, insecure string
}

// serve serves the snapshotter as upstream's daemon does, with its default
// configuration, until ctx ends.
func (s *server) serve(ctx context.Context) error {
	var conf service.Config
	if s.insecure != "" {
		conf.ResolverConfig.Host = map[string]resolver.HostConfig{
			s.insecure: {Mirrors: []resolver.MirrorConfig{{Host: s.insecure, Insecure: true}}},
		}
	}
	sn, err := service.NewStargzSnapshotterService(ctx, s.root, &conf)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", s.socket)
	if err != nil {
		return err
	}
	rpc := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(rpc, snapshotservice.FromSnapshotter(sn))
	stop := context.AfterFunc(ctx, rpc.Stop)
	defer stop()
	fmt.Println("serving on", s.socket)
	if err := rpc.Serve(l); err != nil {
		return err
	}
	return sn.Close()
}
