#!/bin/sh
# A verifier for layerhold (`verifier` of an [[upstream]]): lets an image pass that cosign finds a signature on.
#
# It is run as `verify-cosign.sh IMAGE REFERENCE`, where IMAGE is registry/repository@digest and REFERENCE the tag or digest that
# was asked for; the same is on its standard input as a JSON object. It ends with 0 for yes, with 1 for no; anything else is no
# answer. The first line that it prints is for layerhold's log.
#
# cosign asks the registry itself. It must not be led to this layerhold for it: that would ask here again.
set -u

case $2 in
# Signatures and attestations are not signed themselves.
sha256-*.sig | sha256-*.att | sha256-*.sbom)
    echo 'a signature'
    exit 0
    ;;
esac

if said=$(cosign verify --key "${COSIGN_KEY:-/etc/layerhold/cosign.pub}" "$1" 2>&1); then
    echo 'signed'
    exit 0
fi
# cosign does not tell a registry that is down from a signature that is missing: both are no, for half a minute.
printf '%s\n' "$said" | grep -v '^$' | tail -n 1
exit 1
