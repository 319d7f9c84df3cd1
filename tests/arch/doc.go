// Package arch holds the house together: it fails when a room imports what it
// must not, when a package does not say what it owns, when a file or function
// grows past what can be read, or when the top level gains a folder. It has
// tests only; they read the source and ask `go list`.
package arch
