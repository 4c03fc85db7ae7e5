package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newToken(b backend, c terminal) *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "token --config file",
		Short: "Print a token of what this node has now, to wait for on another one",
		Long: `Print a token of all that is committed on this node now, by its own users and from others. Whoever waits for
it on another node reads there what could be read here: pgbridge wait --for TOKEN, GET /wait?for=TOKEN of its
bridge, or SELECT pgbridge.wait('TOKEN') in its database.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			token, err := b.token(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.out, token)
			return err
		},
	}
	flags.add(cmd)
	return cmd
}

func newWait(b backend) *cobra.Command {
	var flags configFlags
	var token string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait --config file --for token",
		Short: "Wait until this node has what a token stands for",
		Long: `Wait until this node has what a token stands for, which pgbridge token printed on another one. The exit code is
1 if it does not in time. Nothing needs to run here but the database.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("for") {
				return usagef("wait needs a token: --for, with what pgbridge token printed")
			}
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			return b.wait(cmd.Context(), cfg, token, timeout)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&token, "for", "", "the token")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return cmd
}
