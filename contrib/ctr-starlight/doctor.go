package main

import (
	"context"

	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

// Grades of a finding.
const (
	gradeOK   = "ok"
	gradeWarn = "warn" // works, but not as well as it could
	gradeFail = "fail"
)

// finding is what doctor says of one thing: the output of --json, whose fields may
// be added to, and never change.
type finding struct {
	Check  string `json:"check"`
	Grade  string `json:"grade"`
	Detail string `json:"detail"`
	Mend   string `json:"mend"`
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "look for what keeps images from being pulled as deltas, and say how to mend it",
		Description: "Looks at the kernel, the configuration, the service, the proxies and the disk.\n" +
			"Ends with 1 if anything is graded fail.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: "/etc/containerd/config.toml", Usage: "configuration of containerd"},
			jsonFlag("a JSON array"),
		},
		Action: doctor,
	}
}

func doctor(ctx context.Context, c *cli.Command) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	all := append(checkKernel("/"), checkConfig(c.String("config"))...)
	err := connect(func(ctx context.Context, _ *cli.Command, client api.StarlightClient) error {
		service, err := checkService(ctx, client)
		all = append(all, service...)
		return err
	})(ctx, c)
	if err != nil {
		all = append(all, finding{"service", gradeFail, "containerd does not answer", explain(err)})
	}
	failed := 0
	rows := [][]string{}
	for _, f := range all {
		if f.Grade == gradeFail {
			failed++
		}
		text := f.Detail
		if f.Mend != "" {
			text += ": " + f.Mend
		}
		rows = append(rows, []string{f.Grade, f.Check, text})
	}
	if c.Bool("json") {
		err = writeJSON(c.Root().Writer, all)
	} else {
		err = table(c.Root().Writer, rows)
	}
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d of %d checks failed", failed, len(all))
	}
	return err
}

// checkService asks containerd itself. An error is that of the first question.
func checkService(ctx context.Context, client api.StarlightClient) ([]finding, error) {
	v, err := client.Version(ctx, &api.VersionRequest{})
	if err != nil {
		return nil, said(ctx, err)
	}
	all := []finding{{"service", gradeOK, "containerd " + v.GetVersion(), ""}}
	addresses, err := proxyAddresses(ctx, client)
	switch {
	case err != nil:
		all = append(all, finding{"proxies", gradeFail, err.Error(), "look into the log of containerd"})
	case len(addresses) == 0:
		all = append(all, finding{"proxies", gradeFail, "none", noProxies})
	}
	for _, a := range addresses {
		if r, err := pingProxy(ctx, client, a, 1); err != nil {
			all = append(all, finding{"proxies", gradeFail, said(ctx, err).Error(),
				"is proxyd running there, and may this node connect to it? curl " + a + "/healthz"})
		} else {
			all = append(all, finding{"proxies", gradeOK, r.line(), ""})
		}
	}
	if r, err := client.Status(ctx, &api.StatusRequest{}); err == nil {
		for _, i := range r.GetImages() {
			if !i.GetComplete() && i.GetReason() != "" {
				all = append(all, finding{"images", gradeWarn, i.GetRef() + " is not complete: " + i.GetReason(),
					"it goes on by itself when the cause has gone; what is missing: ctr-starlight status --missing " + i.GetRef()})
			}
		}
	}
	if r, err := client.DiskUsage(ctx, &api.DiskUsageRequest{}); err == nil && len(r.GetUsages()) > 0 {
		all = append(all, checkDisk(filepath.Dir(r.GetUsages()[0].GetPath())))
	}
	return all, nil
}

// checkDisk warns before pulls fail.
func checkDisk(dir string) finding {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return finding{"disk", gradeWarn, dir + ": " + err.Error(), "run doctor on the node, as root"}
	}
	free, whole := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	f := finding{"disk", gradeOK, fmt.Sprintf("%s free of %s at %s", size(free), size(whole), dir), ""}
	const least = 1 << 30
	if free < least || free < whole/20 {
		f.Grade, f.Mend = gradeWarn, "remove images that are not needed, then ctr-starlight gc"
	}
	if st.Ffree == 0 && st.Files > 0 {
		f.Grade, f.Detail, f.Mend = gradeFail, "no inodes are left at "+dir, "remove images that are not needed, then ctr-starlight gc"
	}
	return f
}
