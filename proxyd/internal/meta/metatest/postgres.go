package metatest

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// startTimeout is generous: the machine may be busy with other tests.
const startTimeout = 2 * time.Minute

// Server is a Postgres server that serves one test on a Unix socket.
type Server struct {
	dir string
	n   atomic.Int32
}

// Postgres starts a server of Debian's packages in a temporary directory, as a
// user who is not root, and ends it with the test.
func Postgres(t testing.TB) *Server {
	t.Helper()
	bin := binaries(t)
	dir, err := os.MkdirTemp("", "starlight-pg-") //nolint:usetesting // t.TempDir is too long for a socket, and closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	attr := unprivileged(t, dir)
	data := filepath.Join(dir, "data")
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "starlight",
		"-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, attr
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s := &Server{dir: dir}
	s.start(ctx, t, filepath.Join(bin, "postgres"), data, attr)
	return s
}

// Database creates an empty database and returns its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	db, err := sql.Open("pgx", s.url("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	name := fmt.Sprintf("test%d", s.n.Add(1))
	if _, err := db.ExecContext(context.Background(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return s.url(name)
}

func (s *Server) url(db string) string {
	return "postgres://starlight@/" + db + "?host=" + url.QueryEscape(s.dir)
}

// start starts the server and waits until it says that it is ready.
func (s *Server) start(ctx context.Context, t testing.TB, postgres, data string, attr *syscall.SysProcAttr) {
	t.Helper()
	cmd := exec.Command(postgres, "-D", data, "-k", s.dir, //nolint:noctx // a path of the system; ended below
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "logging_collector=off")
	cmd.Dir, cmd.SysProcAttr = s.dir, attr
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan struct{})
	var log strings.Builder // read after done
	go func() {
		defer close(done)
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			if strings.Contains(sc.Text(), "ready to accept connections") {
				close(ready)
				break
			}
			log.WriteString(sc.Text() + "\n")
		}
		_, _ = io.Copy(io.Discard, stderr)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // fast shutdown
		<-done
		_ = cmd.Wait()
	})
	select {
	case <-ready:
	case <-done:
		t.Fatalf("postgres ended:\n%s", log.String())
	case <-ctx.Done():
		t.Fatal("postgres does not get ready")
	}
}

// binaries finds the directory of the newest installed server.
func binaries(t testing.TB) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("no Postgres server below /usr/lib/postgresql; apt-get install postgresql")
	}
	version := func(p string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(p))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) }))
}

// unprivileged gives dir to a user who is not root, because Postgres refuses to
// run as root, and returns the attributes that make a process theirs.
func unprivileged(t testing.TB, dir string) *syscall.SysProcAttr {
	t.Helper()
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() != 0 {
		return attr
	}
	u, err := user.Lookup("postgres")
	if _, ok := errors.AsType[user.UnknownUserError](err); ok {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: false}
	return attr
}
