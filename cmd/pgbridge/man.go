package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newMan writes manual pages, for whoever makes a package.
func newMan(c terminal) *cobra.Command {
	return &cobra.Command{
		Use:    "man directory",
		Short:  "Write the manual pages of all commands to a directory",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s takes a directory", cmd.CommandPath())
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			date := committed()
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "pgbridge " + version, Manual: "pgbridge", Date: &date}, args[0]); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			c.tell("the manual pages are in " + args[0])
			return nil
		},
	}
}

// committed is when this version was committed, so that what is made of it is the same each time.
func committed() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if at, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
				return at
			}
		}
	}
	return time.Unix(0, 0).UTC()
}
