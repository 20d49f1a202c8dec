package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

// connected is the action of a command that needs the service.
type connected func(ctx context.Context, c *cli.Command, client api.StarlightClient) error

// connect makes an action of fn: it connects and applies --timeout.
func connect(fn connected) cli.ActionFunc {
	return dial(func(ctx context.Context, c *cli.Command, conn *grpc.ClientConn) error {
		return fn(ctx, c, api.NewStarlightClient(conn))
	})
}

// dial is connect for any service on the socket.
func dial(fn func(context.Context, *cli.Command, *grpc.ClientConn) error) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		ctx, cancel := timeout(ctx, c)
		defer cancel()
		address := strings.TrimPrefix(c.String("address"), "unix://")
		if err := await(ctx, address, c.Duration("connect-timeout")); err != nil {
			return &serviceError{address: address, err: err}
		}
		conn, err := grpc.NewClient("unix://"+address,
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
		if err != nil {
			return &serviceError{address: address, err: err}
		}
		defer func() { _ = conn.Close() }()
		if err := fn(ctx, c, conn); err != nil {
			return &serviceError{address: address, err: err}
		}
		return nil
	}
}

// await tries to reach the socket, again and again if there is patience: gRPC
// would not say what is wrong with it.
func await(ctx context.Context, address string, patience time.Duration) error {
	const again = 100 * time.Millisecond
	deadline := time.Now().Add(patience)
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", address)
		if err == nil {
			return conn.Close()
		}
		if time.Until(deadline) <= 0 || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(min(again, time.Until(deadline))):
		}
	}
}

// serviceError is a failure of a command that needs containerd.
type serviceError struct {
	address string
	err     error
}

func (e *serviceError) Error() string { return e.err.Error() }
func (e *serviceError) Unwrap() error { return e.err }

// rpcError is what the service said, without the words that gRPC puts around it.
type rpcError struct{ *status.Status }

func (e *rpcError) Error() string { return e.Message() }

// said translates the error of a call: why it was ended here, or what came back.
func said(ctx context.Context, err error) error {
	// The server knows our deadline and may act on it a moment before we do.
	if at, ok := ctx.Deadline(); ok && time.Until(at) < time.Second {
		switch status.Code(err) {
		case codes.Canceled, codes.DeadlineExceeded:
			<-ctx.Done()
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), context.Canceled):
		return errors.New("interrupted")
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return &rpcError{status.Convert(err)}
}

// explain says what went wrong, and what to do next.
func explain(err error) string {
	var service *serviceError
	if !errors.As(err, &service) {
		return err.Error()
	}
	var rpc *rpcError
	switch socket := service.address; {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("there is no socket %s: is containerd running (systemctl status containerd)? "+
			"If it listens elsewhere, give --address or CONTAINERD_ADDRESS", socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("no permission for %s: run as root", socket)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Sprintf("nobody answers on %s: has containerd stopped (systemctl status containerd)?", socket)
	case errors.As(err, &rpc) && rpc.Code() == codes.Unimplemented:
		return fmt.Sprintf("the containerd on %s has no Starlight service: either it is not Starlight's build, or its "+
			"plugins failed to load (ctr plugins ls, journalctl -u containerd)", socket)
	case errors.As(err, &rpc) && rpc.Code() == codes.Unauthenticated:
		return err.Error() + ": give --user, or CTR_STARLIGHT_USER"
	default:
		return err.Error()
	}
}
