package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// terminal is where a command writes: its answer to out, its errors and its log to err.
type terminal struct {
	out, err io.Writer
}

// tell writes what a command has to say while it runs.
func (c terminal) tell(text string) { fmt.Fprintln(c.err, text) }

// execute runs one command line and returns its exit code. leave is called by a second signal.
func execute(ctx context.Context, args []string, c terminal, b backend, signals <-chan os.Signal, leave func(int)) int {
	ctx, stop := untilSignal(ctx, signals, c.err, leave)
	defer stop()
	root := newRoot(b, c)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintln(c.err, "pgbridge:", line)
		}
	}
	return exitCode(err)
}

// newRoot builds the command tree.
func newRoot(b backend, c terminal) *cobra.Command {
	root := &cobra.Command{
		Use:   "pgbridge",
		Short: "Make ordinary PostgreSQL primaries one multi-leader database",
		Long: `pgbridge runs beside a PostgreSQL primary. It publishes what is committed there on NATS JetStream and
applies what is committed on the other nodes.

Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 a check found something; 4 fenced,
another bridge has this node: do not restart.`,
		Args:          cobra.ArbitraryArgs, // so that an unknown command is ours to refuse
		RunE:          refuseUnknownCommand,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v; %q lists the flags", err, cmd.CommandPath()+" --help")
	})
	root.AddCommand(newRun(b, c), newSetup(b, c), newDoctor(b, c), newStatus(b, c), newTop(b, c), newSequences(b, c), newNode(b, c), newConflicts(b, c), newParked(b, c), newOrphans(b, c), newVerify(b, c), newDDL(b, c), newPause(b, c), newResume(b), newReload(b, c), newKeys(b, c), newToken(b, c), newWait(b), newDemo(b, c), newMan(c), newVersion(c))
	return root
}

// refuseUnknownCommand runs when no verb was recognised; without any word it shows the help.
func refuseUnknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2 // cobra's own default, which it forgets where the command is ours to refuse
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usagef("unknown command %q; did you mean %q?", args[0], near[0])
	}
	return usagef("unknown command %q; %q lists the commands", args[0], cmd.CommandPath()+" --help")
}

// noArguments refuses words behind a verb that takes none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usagef("%s takes no arguments, got %q; %q shows its use", cmd.Name(), args[0], cmd.CommandPath()+" --help")
}
