// Package chaos breaks things on purpose: power cuts, kill -9, damaged and full
// disks, a runtime that goes away, hostile machines at the hub's door. After each
// it asks two questions: is anything lost, and was anybody else disturbed?
package chaos
