package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionReport is what version prints.
type versionReport struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source, if it was built in a checkout
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersion(c terminal) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArguments,
		RunE: func(*cobra.Command, []string) error {
			build, _ := debug.ReadBuildInfo()
			v := readVersion(version, build)
			if asJSON {
				return printJSON(c, v)
			}
			_, err := fmt.Fprintln(c.out, v)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// String gives "pgbridge v1.2.3 (revision, go1.26, linux/amd64)".
func (v versionReport) String() string {
	built := v.Go + ", " + v.Platform
	if v.Revision != "" {
		built = v.Revision + ", " + built
	}
	return fmt.Sprintf("pgbridge %s (%s)", v.Version, built)
}

// readVersion takes the linker's word before the module's; build may be nil.
func readVersion(linked string, build *debug.BuildInfo) versionReport {
	v := versionReport{Version: linked, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if build == nil {
		build = &debug.BuildInfo{}
	}
	v.Version = cmp.Or(linked, build.Main.Version, "(devel)")
	for _, s := range build.Settings {
		if s.Key == "vcs.revision" {
			v.Revision = s.Value
		}
	}
	return v
}
